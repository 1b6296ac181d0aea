"""Draws inside functions, such as the dropout of attention, from the seeds of a client's steps.

`nn.Dropout` layers have keys of their own (`heliotrope.models.layers.seeded`). What draws inside a
function has none: here it takes numbers of one stream a step, call by call, in the sequential
reference as in stacks. So a client is treated alike, wherever and with whom it is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from heliotrope.models.layers.seeded import SeededLayer, kept
from heliotrope.seeding import hashed, hashed_number

from .stackable import substitutes

__all__ = ["FunctionDraws", "SeededFunctions", "function_key", "may_draw"]

_DRAWING = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.RReLU,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
)
_STREAM = 1 << 20  # number of the functions' stream in a step, beyond those of the layers


def may_draw(model: nn.Module) -> bool:
    """Return whether a forward pass of `model` could draw outside of seeded layers.

    Code of users may, and some layers of torch's own do.
    """
    return any(
        not isinstance(layer, SeededLayer)
        and (
            not type(layer).__module__.startswith(("torch.nn.modules.", "heliotrope."))
            or isinstance(layer, _DRAWING)
            or (isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and layer.dropout > 0)
        )
        for layer in model.modules()
    )


def function_key(step_seeds: Tensor) -> Tensor:
    """Return the key of each step's function draws, shaped as `step_seeds`."""
    return hashed(step_seeds, torch.tensor(_STREAM))


class FunctionDraws:
    """The dropout of functions: each call of a forward pass draws anew."""

    def __init__(self) -> None:
        self._key = torch.zeros((), dtype=torch.int64)
        self._calls = 0

    def begin(self, key: Tensor) -> None:
        """Begin a forward pass, whose draws follow from `key`, an int64 scalar."""
        self._key, self._calls = key, 0

    def __call__(self, inputs: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
        if not training or p == 0.0:
            return inputs
        if p == 1.0:
            return torch.zeros_like(inputs)
        key = hashed(self._key, torch.tensor(self._calls, device=self._key.device))
        self._calls += 1
        first = torch.zeros((), dtype=torch.int64, device=key.device)
        mask = kept(key, first, inputs.shape, p)
        return inputs * (mask.to(inputs.dtype) * (1.0 / (1.0 - p)))


class SeededFunctions(TorchFunctionMode):
    """Gives the functions inside the block their draws; those that draw nothing are torch's own.

    For a forward pass of the sequential reference with the seed of its step.
    """

    def __init__(self, step_seed: int, device: torch.device) -> None:
        super().__init__()
        draws = FunctionDraws()
        draws.begin(torch.tensor(hashed_number(step_seed, _STREAM), device=device))
        self._substitutes = substitutes(draws)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        drawing = func in _DROPOUT_AT and _draws(func, args, kwargs)
        return (self._substitutes[func] if drawing else func)(*args, **kwargs)


# Where these functions have their probability, and the name and place of whether they train.
_DROPOUT_AT: dict[Callable[..., Any], tuple[int, str, int | None]] = {
    functional.dropout: (1, "p", 2),
    functional.scaled_dot_product_attention: (4, "dropout_p", None),
    functional.multi_head_attention_forward: (10, "dropout_p", 13),
    torch.lstm: (5, "dropout", 6),
    torch.gru: (5, "dropout", 6),
    torch.rnn_tanh: (5, "dropout", 6),
    torch.rnn_relu: (5, "dropout", 6),
}
_DEFAULTS = {functional.dropout: 0.5}


def _draws(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether this call would draw from torch's generator."""
    position, name, trains_at = _DROPOUT_AT[func]
    p = args[position] if len(args) > position else kwargs.get(name, _DEFAULTS.get(func, 0.0))
    if trains_at is None:
        return bool(p)
    training = args[trains_at] if len(args) > trains_at else kwargs.get("training", True)
    return bool(p) and bool(training)
