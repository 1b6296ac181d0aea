"""The steps through time of LSTM, GRU and RNN, forwards and backwards, of K clients at once.

Each is an `autograd.Function` that knows its own gradient: what does not depend on the next time
is computed for all times at once, which leaves a handful of operations a step. They are plain
operations, so that a captured step records them, but they are differentiable only once.

Shape legend: T times, K stacked clients, B batch, H hidden units, P units of the output (H
unless projected), G gates times H. Tensors of all times are [T, K, B, ...], states [K, B, ...],
weights [K, ...]. Under vmap another dimension of clients is folded into K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["GruSteps", "LstmSteps", "RnnSteps", "folded"]


def folded(
    apply: Callable[..., Any],
    size: int,
    dims: Sequence[int | None],
    operands: Sequence[Any],
    timed: Sequence[bool],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Return `apply` of operands whose mapped dimension, of `size`, is folded into K's.

    The first tensor has times, the others have none; `timed` says which results have.
    """
    inside: list[Any] = []
    for operand, dim in zip(operands, dims, strict=True):
        if not isinstance(operand, Tensor):
            inside.append(operand)
            continue
        front = 0 if any(isinstance(before, Tensor) for before in inside) else 1
        if dim is None:
            shape = (*operand.shape[:front], size, *operand.shape[front:])
            mapped = operand.unsqueeze(front).expand(shape)
        else:
            mapped = operand.movedim(dim, front)
        inside.append(mapped.flatten(front, front + 1))
    out_dims = [1 if has_times else 0 for has_times in timed]
    results = apply(*inside)
    unfolded = [
        result.unflatten(out_dim, (size, -1))
        for result, out_dim in zip(results, out_dims, strict=True)
    ]
    return tuple(unfolded), tuple(out_dims)


def _of_hidden(gates: Tensor, before: Tensor) -> Tensor:
    """Return the gradient of a weight [K, G, P] that turned `before` into gates, all [T, K, B]."""
    left, right = (given.transpose(0, 1).flatten(1, 2) for given in (gates, before))
    return torch.bmm(left.transpose(1, 2), right)


def _before(initial: Tensor, states: Tensor) -> Tensor:
    """Return the state before each time, [T, K, B, *]."""
    return torch.cat([initial.unsqueeze(0), states[:-1]])


class LstmSteps(torch.autograd.Function):
    """(gates of the inputs, h, c, W_hh, projection or None) -> (outputs, final c, kept values).

    Gates are input, forget, cell and output, as in torch's weights.
    """

    @staticmethod
    def forward(
        gates: Tensor, h: Tensor, c: Tensor, weight: Tensor, projection: Tensor | None
    ) -> tuple[Tensor, ...]:
        hidden, turned = c.shape[-1], weight.transpose(1, 2)
        shrink = None if projection is None else projection.transpose(1, 2)
        outputs, opened, news, cells = [], [], [], []
        for of_input in gates.unbind(0):
            gate = torch.baddbmm(of_input, h, turned)
            new = torch.tanh(gate.narrow(-1, 2 * hidden, hidden))
            gate = torch.sigmoid(gate)  # the cell's quarter is not used
            i, f, _, o = gate.chunk(4, dim=-1)
            c = torch.addcmul(torch.mul(f, c), i, new)
            h = torch.mul(o, torch.tanh(c))
            if shrink is not None:
                h = torch.bmm(h, shrink)
            outputs.append(h)
            opened.append(gate)
            news.append(new)
            cells.append(c)
        return torch.stack(outputs), c, torch.stack(opened), torch.stack(news), torch.stack(cells)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, h, c, weight, projection = inputs
        outputs, _, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, c, weight, projection, outputs, *kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor | None, d_c: Tensor | None, *_: Any) -> Any:
        h, c, weight, projection, outputs, gates, new, cells = ctx.saved_tensors
        i, f, _, o = gates.chunk(4, dim=-1)
        squashed = torch.tanh(cells)
        # What each gate's gradient is, per unit of the gradient of c (of h, for the last).
        slopes = gates * (1 - gates)
        si, sf, _, so = slopes.chunk(4, dim=-1)
        factors = torch.cat(
            [new * si, _before(c, cells) * sf, i * (1 - new * new), squashed * so], dim=-1
        ).unbind(0)
        to_cell = (o * (1 - squashed * squashed)).unbind(0)
        d_outputs = torch.zeros_like(outputs) if d_outputs is None else d_outputs
        d_c = torch.zeros_like(c) if d_c is None else d_c
        arriving, forgets = d_outputs.unbind(0), f.unbind(0)
        d_h, d_gates, d_projected = arriving[-1], [], []
        for time in reversed(range(len(factors))):
            if projection is not None:
                d_projected.append(d_h)
                d_h = torch.bmm(d_h, projection)
            d_c = torch.addcmul(d_c, d_h, to_cell[time])
            d_gate = torch.mul(torch.cat([d_c, d_c, d_c, d_h], dim=-1), factors[time])
            d_gates.append(d_gate)
            d_c = torch.mul(d_c, forgets[time])
            if time:
                d_h = torch.baddbmm(arriving[time - 1], d_gate, weight)
            else:
                d_h = torch.bmm(d_gate, weight)
        d_all = torch.stack(d_gates[::-1])
        d_weight = _of_hidden(d_all, _before(h, outputs))
        d_projection = None
        if projection is not None:
            d_projection = _of_hidden(torch.stack(d_projected[::-1]), o * squashed)
        return d_all, d_h, d_c, d_weight, d_projection

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *operands: Any) -> Any:
        timed = (True, False, True, True, True)
        return folded(LstmSteps.apply, info.batch_size, in_dims, operands, timed)


class GruSteps(torch.autograd.Function):
    """(gates of the inputs, h, W_hh, b_hh) -> (outputs, kept values).

    Gates are reset, update and new, as in torch's weights.
    """

    @staticmethod
    def forward(gates: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        hidden, turned, bias = h.shape[-1], weight.transpose(1, 2), bias.unsqueeze(1)
        outputs, opened, news, recalls = [], [], [], []
        of_gates = gates.narrow(-1, 0, 2 * hidden).unbind(0)
        of_new = gates.narrow(-1, 2 * hidden, hidden).unbind(0)
        for of_gate, of_input in zip(of_gates, of_new, strict=True):
            of_hidden = torch.baddbmm(bias, h, turned)
            gate = torch.sigmoid(torch.add(of_gate, of_hidden.narrow(-1, 0, 2 * hidden)))
            recall = of_hidden.narrow(-1, 2 * hidden, hidden)
            reset, update = gate.chunk(2, dim=-1)
            new = torch.tanh(torch.addcmul(of_input, reset, recall))
            h = torch.addcmul(new, update, torch.sub(h, new))
            outputs.append(h)
            opened.append(gate)
            news.append(new)
            recalls.append(recall)
        return torch.stack(outputs), torch.stack(opened), torch.stack(news), torch.stack(recalls)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, h, weight, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, weight, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor | None, *_: Any) -> Any:
        h, weight, outputs, gates, new, recall = ctx.saved_tensors
        if d_outputs is None:
            return None, None, None, None
        reset, update = gates.chunk(2, dim=-1)
        before = _before(h, outputs)
        # What each gate's gradient is, per unit of the gradient of h.
        to_new = (1 - update) * (1 - new * new)
        to_reset = to_new * recall * reset * (1 - reset)
        to_update = (before - new) * update * (1 - update)
        factors = torch.stack([to_reset, to_update, to_new * reset], dim=-2)  # [T, K, B, 3, H]
        by_time, updates, arriving = factors.unbind(0), update.unbind(0), d_outputs.unbind(0)
        d_h, d_states = arriving[-1], []
        for time in reversed(range(len(by_time))):
            d_states.append(d_h)
            d_gate = torch.mul(d_h.unsqueeze(-2), by_time[time]).flatten(-2)
            d_h = torch.baddbmm(torch.mul(d_h, updates[time]), d_gate, weight)
            if time:
                d_h = torch.add(d_h, arriving[time - 1])
        d_states_all = torch.stack(d_states[::-1])
        d_hidden = (d_states_all.unsqueeze(-2) * factors).flatten(-2)
        d_gates = torch.cat(
            [d_hidden.narrow(-1, 0, gates.shape[-1]), d_states_all * to_new], dim=-1
        )
        return d_gates, d_h, _of_hidden(d_hidden, before), d_hidden.sum(dim=(0, 2))

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *operands: Any) -> Any:
        return folded(GruSteps.apply, info.batch_size, in_dims, operands, (True,) * 4)


class RnnSteps(torch.autograd.Function):
    """(gates of the inputs, h, W_hh, whether tanh instead of ReLU) -> (outputs,)."""

    @staticmethod
    def forward(gates: Tensor, h: Tensor, weight: Tensor, is_tanh: bool) -> tuple[Tensor]:
        turned, bend = weight.transpose(1, 2), torch.tanh if is_tanh else torch.relu
        outputs = []
        for of_input in gates.unbind(0):
            h = bend(torch.baddbmm(of_input, h, turned))
            outputs.append(h)
        return (torch.stack(outputs),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor]) -> None:
        _, h, weight, ctx.is_tanh = inputs
        ctx.save_for_backward(h, weight, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> Any:
        h, weight, outputs = ctx.saved_tensors
        slopes = 1 - outputs * outputs if ctx.is_tanh else (outputs > 0).to(outputs.dtype)
        slope, arriving = slopes.unbind(0), d_outputs.unbind(0)
        d_h, d_gates = arriving[-1], []
        for time in reversed(range(len(slope))):
            d_gate = torch.mul(d_h, slope[time])
            d_gates.append(d_gate)
            if time:
                d_h = torch.baddbmm(arriving[time - 1], d_gate, weight)
            else:
                d_h = torch.bmm(d_gate, weight)
        d_all = torch.stack(d_gates[::-1])
        return d_all, d_h, _of_hidden(d_all, _before(h, outputs)), None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *operands: Any) -> Any:
        return folded(RnnSteps.apply, info.batch_size, in_dims, operands, (True,))
