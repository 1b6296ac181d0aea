"""Layers without a batching rule, by operations that have one: a user's module runs stacked.

`torch.func.vmap` cannot map torch's recurrent kernels, falls back to a loop for bags of
embeddings, takes a kernel that draws random numbers for attention, and maps `embedding` with a
`padding_idx` to a wrong gradient (seen in torch 2.13). Inside `Stackable`, which catches torch's
functions before they are run (a `TorchFunctionMode`), the same layers are computed by products,
sums and elementwise operations. The modules stay as they are, in any thread: their own forward
methods run, and so do those of their subclasses. Results and gradients are torch's to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from . import attention, embedding, recurrent
from .linear import linear
from .refusal import Dropout, NotStackableError

__all__ = ["Dropout", "NotStackableError", "Stackable", "substitutes"]


class Stackable(TorchFunctionMode):
    """Computes the layers inside the block by operations that can be mapped and captured.

    A block is entered around a forward pass of `model`, in any number of threads at once.

    Parameters
    ----------
    model
        Whose forward passes these are. Recurrent layers keep a list of their weights; on leaving
        the block it is theirs again, not that of the functional call's.
    dropout
        (inputs, p, training) -> outputs, for the dropout inside recurrent layers and attention.

    Raises
    ------
    NotStackableError
        In the forward pass, for an option that depends on a whole batch or changes a weight.
    """

    def __init__(self, model: nn.Module, dropout: Dropout = functional.dropout) -> None:
        super().__init__()
        self._recurrent = [layer for layer in model.modules() if isinstance(layer, nn.RNNBase)]
        self._substitutes = substitutes(dropout)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self._substitutes.get(func, func)(*args, **(kwargs or {}))

    def __exit__(self, *reason: object) -> None:
        super().__exit__(*reason)  # type: ignore[no-untyped-call]
        for layer in self._recurrent:
            layer._update_flat_weights()  # noqa: SLF001 - as each of its forward passes does


def substitutes(dropout: Dropout) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what is computed in the place of torch's functions."""

    def drop(
        input: Tensor,  # noqa: A002 - torch's name for it
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        outputs = dropout(input, p=p, training=training)
        return input.copy_(outputs) if inplace and outputs is not input else outputs

    return {
        functional.dropout: drop,
        torch.lstm: recurrent.Lstm(dropout),
        torch.gru: recurrent.Gru(dropout),
        torch.rnn_tanh: recurrent.Rnn(dropout, "tanh"),
        torch.rnn_relu: recurrent.Rnn(dropout, "relu"),
        torch.lstm_cell: recurrent.lstm_cell,
        torch.gru_cell: recurrent.gru_cell,
        torch.rnn_tanh_cell: recurrent.RnnCell(torch.tanh),
        torch.rnn_relu_cell: recurrent.RnnCell(torch.relu),
        torch._VF._pack_padded_sequence: recurrent.refuse_packing,  # noqa: SLF001 - its name
        functional.linear: linear,
        functional.scaled_dot_product_attention: attention.Attention(dropout),
        functional.multi_head_attention_forward: attention.multi_head(dropout),
        functional.embedding: embedding.embedding,
        torch.embedding: embedding.embedding_kernel,
        functional.embedding_bag: embedding.embedding_bag,
        torch.embedding_bag: embedding.refuse_bag_kernel,
        Tensor.data_ptr: _address,
        Tensor.requires_grad.__get__: _requires_grad,  # type: ignore[attr-defined]
        Tensor.numpy: _refuse_numbers,
        Tensor.tolist: _refuse_numbers,
        Tensor.__array__: _refuse_numbers,
    }


def _requires_grad(tensor: Tensor) -> bool:
    """Return whether a tensor has a gradient, of a mapped one too: vmap denies it.

    Code that asks before it registers a hook would else leave it out without a word.
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # noqa: SLF001
        tensor = torch._C._functorch.get_unwrapped(tensor)  # noqa: SLF001
    return tensor.requires_grad


def _refuse_numbers(*_: Any, **__: Any) -> None:
    """Refuse code whose results a recording could not follow."""
    raise NotStackableError("it takes numbers out of torch (numpy, tolist), where they are lost")


def _address(tensor: Tensor) -> int:
    """Return where a tensor is stored; 0 for a mapped one, which has no address of its own.

    nn.LSTM and its like ask on a GPU, to keep their weights in one block: weights that are seen
    to share an address are left alone.
    """
    mapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # noqa: SLF001
    return 0 if mapped else tensor.data_ptr()
