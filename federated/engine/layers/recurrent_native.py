"""LSTM by oneDNN's kernel, client by client, where that is faster than written out over time.

The kernel is torch's own choice on CPUs, for float32. It computes gates and products together,
which operations one by one do not: on two cores of Zen 5 with torch 2.13, a step of 28 times, ten
rows and 64 units takes it 400 us, and 760 us of a stack's when written out; with 256 units 2.9 ms
and 8.2 ms; but small layers have too little to do for as many calls. Those of GRU and RNN are
slower than `recurrent_steps` at every size.

Shape legend: T times, K stacked clients, B batch, I inputs, H hidden units, G four times H.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .recurrent_steps import folded

__all__ = ["NativeLstm", "is_native", "native_work"]

_ENOUGH = 16_000  # B * H * H, from which a call of the kernel is worth it
_FEW = 4  # clients, whose operations are not worth writing out

_aten = torch.ops.aten
_LSTM = 2  # as the kernel calls it

# Operators of our own: a captured step records each as one call, and the kernel needs gradients
# to be enabled where it is called, also in a replay.
_namespace = __name__.replace(".", "_")
_library: Any = torch.library.Library(_namespace, "DEF")  # type: ignore[no-untyped-call]
_arguments = "Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh"
_library.define(f"lstm({_arguments}) -> Tensor[]")  # outputs, cells, each client's work
_library.define(
    f"lstm_backward({_arguments}, Tensor y, Tensor c_last, Tensor dy, Tensor dc, Tensor[] work)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_ours = getattr(torch.ops, _namespace)


def is_native(inputs: Tensor) -> bool:
    """Return whether the kernel can be used on `inputs` (and weights) of this type."""
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
    )


def _lstm(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> list[Tensor]:
    units, results = h.shape[-1], []
    with torch.enable_grad():
        for client in zip(*_by_client(x, h, c, *weights), strict=True):
            mine, h0, c0, *given = client
            results.append(
                _aten.mkldnn_rnn_layer.default(
                    *(mine, *given, h0, c0, False, [], _LSTM, units, 1, True, False, False, True)
                )
            )
    outputs, _, cells, work = zip(*results, strict=True)
    return [torch.stack(outputs, dim=1), torch.stack(cells), *work]


def _lstm_backward(x: Tensor, h: Tensor, c: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    units, results = h.shape[-1], []
    weights, (y, c_last, dy, dc, work) = rest[:4], rest[4:]
    given = _by_client(x, h, c, *weights)
    made = [*_by_client(y, y[-1], c_last), *_by_client(dy, torch.zeros_like(h), dc)]
    for (mine, h0, c0, *by), results_of, workspace in zip(
        zip(*given, strict=True), zip(*made, strict=True), work, strict=True
    ):
        how: tuple[Any, ...] = (False, _LSTM, units, 1, True, True, False, [], False)
        results.append(
            _aten.mkldnn_rnn_layer_backward.default(
                *(mine, *by, h0, c0, *results_of, *how, workspace)
            )
        )
    dx, dw_ih, dw_hh, db, _, dh0, dc0 = zip(*results, strict=True)  # the biases' are the same
    states = torch.stack(dh0), torch.stack(dc0)
    return torch.stack(dx, dim=1), *states, *(torch.stack(d) for d in (dw_ih, dw_hh, db))


def _by_client(timed: Tensor, *others: Tensor) -> list[tuple[Tensor, ...]]:
    """Return, of each, the clients' parts; `timed` is [T, K, ...], the others are [K, ...]."""
    first = timed.detach().transpose(0, 1).contiguous().unbind(0)
    return [first, *(other.detach().contiguous().unbind(0) for other in others)]


_library.impl("lstm", _lstm, "CPU")
_library.impl("lstm_backward", _lstm_backward, "CPU")


def native_work(operator: Any, args: Sequence[Any]) -> int:
    """Return the multiplications of a call of our operators, 0 of any other."""
    passes = {_ours.lstm.default: 1, _ours.lstm_backward.default: 2}.get(operator, 0)
    if not passes:
        return 0
    x, w_ih, w_hh = args[0], args[3], args[4]
    return int(passes * x.shape[0] * x.shape[2] * (w_ih.numel() + w_hh.numel()))


WrittenOut = Callable[..., tuple[Tensor, Tensor]]


class NativeLstm(torch.autograd.Function):
    """(what it is if written out, x [T, K, B, I], h, c, weights) -> (outputs, c, each's work).

    Weights are W_ih [K, G, I], W_hh [K, G, H], b_ih [K, G] and b_hh [K, G].
    """

    @staticmethod
    def forward(_: WrittenOut, *operands: Tensor) -> tuple[Tensor, ...]:
        return tuple(_ours.lstm(*operands))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:], *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dc: Tensor | None, *_: Any) -> Any:
        x, h, c, *rest = ctx.saved_tensors
        weights, (y, c_last, *work) = rest[:4], rest[4:]
        dy = torch.zeros_like(y) if dy is None else dy
        dc = torch.zeros_like(c) if dc is None else dc
        *gradients, d_bias = _ours.lstm_backward(x, h, c, *weights, y, c_last, dy, dc, work)
        return (None, *gradients, d_bias, d_bias)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *operands: Any) -> Any:
        work: list[Tensor] = []

        def apply(written_out: WrittenOut, x: Tensor, h: Tensor, *rest: Tensor) -> Any:
            if x.shape[1] >= _FEW and x.shape[2] * h.shape[-1] ** 2 < _ENOUGH:
                return written_out(x, h, *rest)
            outputs, c, *kept = NativeLstm.apply(  # type: ignore[no-untyped-call]
                written_out, x, h, *rest
            )
            work.extend(kept)
            return outputs, c

        results, out_dims = folded(apply, info.batch_size, in_dims, operands, (True, False))
        return (*results, *work), (*out_dims, *(None for _ in work))
