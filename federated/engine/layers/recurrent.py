"""LSTM, GRU and RNN in the place of torch's kernels, which can be neither mapped nor captured.

The inputs' part of all gates is one product over all times; `recurrent_steps` does the rest.
Shape legend: T times, B batch, I inputs, P units of the output, G gates times hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .recurrent_native import NativeLstm, is_native
from .recurrent_steps import GruSteps, LstmSteps, RnnSteps
from .refusal import Dropout, NotStackableError

__all__ = ["Gru", "Lstm", "Rnn", "RnnCell", "gru_cell", "lstm_cell", "refuse_packing"]


def refuse_packing(*_: Any, **__: Any) -> None:
    """Refuse packed sequences: the number of rows at a time depends on the values of a tensor."""
    raise NotStackableError(
        "it packs sequences by their lengths (pack_padded_sequence), which differ among clients; "
        "give the recurrent layer the padded batch"
    )


@dataclass(frozen=True)
class _Options:
    """As torch's kernels take them, in their order."""

    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool


Layer = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, list[Tensor]]]
"""(inputs [T, B, I], initial states [B, *], weights) -> (outputs [T, B, P], final states)."""


def _layers(
    layer: Layer,
    dropout: Dropout,
    inputs: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    how: _Options,
) -> tuple[Tensor, list[Tensor]]:
    """Return outputs and final states, [layers * directions, B, *], of all layers."""
    directions = 2 if how.bidirectional else 1
    each = len(weights) // (how.num_layers * directions)
    outputs = inputs.transpose(0, 1) if how.batch_first else inputs
    finals: list[list[Tensor]] = []
    for number in range(how.num_layers):
        if number and how.train and how.dropout:
            outputs = dropout(outputs.transpose(0, 1), p=how.dropout, training=True).transpose(0, 1)
        both = []
        for direction in range(directions):
            index = number * directions + direction
            mine = weights[index * each : (index + 1) * each]
            given = outputs.flip(0) if direction else outputs
            ahead, final = layer(given, [state[index] for state in states], mine)
            both.append(ahead.flip(0) if direction else ahead)
            finals.append(final)
        outputs = torch.cat(both, dim=-1) if how.bidirectional else both[0]
    outputs = outputs.transpose(0, 1) if how.batch_first else outputs
    return outputs, [torch.stack(state) for state in zip(*finals, strict=True)]


def _from_inputs(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the part of the gates [T, K, B, G] of inputs [T, K, B, I], by weights [K, G, I]."""
    clients = inputs.transpose(0, 1).flatten(1, 2)
    turned = weight.transpose(1, 2)
    if bias is None:
        gates = torch.bmm(clients, turned)
    else:
        gates = torch.baddbmm(bias.unsqueeze(1), clients, turned)
    gates = gates.view(len(gates), len(inputs), -1, gates.shape[-1])
    return gates.transpose(0, 1)


class Lstm:
    """In the place of `torch.lstm`."""

    def __init__(self, dropout: Dropout) -> None:
        self._dropout = dropout

    def __call__(
        self, inputs: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], *args: Any, **how: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs and the final hidden and cell states."""
        if isinstance(hx, Tensor):
            refuse_packing()
        options = _Options(*args, **how)
        outputs, (h, c) = _layers(self._layer, self._dropout, inputs, hx, params, options)
        return outputs, h, c

    def _layer(
        self, inputs: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        stacked = [weight.unsqueeze(0) for weight in (*states, *weights)]
        if len(weights) == 4 and is_native(inputs):
            outputs, c, *_ = NativeLstm.apply(  # type: ignore[no-untyped-call]
                _lstm_written_out, inputs.unsqueeze(1), *stacked
            )
        else:
            outputs, c = _lstm_written_out(inputs.unsqueeze(1), *stacked)
        outputs = outputs.squeeze(1)
        return outputs, [outputs[-1], c.squeeze(0)]


def _lstm_written_out(
    inputs: Tensor, h: Tensor, c: Tensor, from_inputs: Tensor, from_hidden: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor]:
    """Return outputs [T, K, B, P] and the final cells; `rest` are biases and a projection."""
    bias = rest[0] + rest[1] if len(rest) > 1 else None
    projection = rest[-1] if len(rest) % 2 else None
    gates = _from_inputs(inputs, from_inputs, bias)
    outputs, c, *_ = LstmSteps.apply(  # type: ignore[no-untyped-call]
        gates, h, c, from_hidden, projection
    )
    return outputs, c


class _OneState:
    """In the place of a kernel whose layers keep one state, the hidden one."""

    def __init__(self, dropout: Dropout) -> None:
        self._dropout = dropout

    def __call__(
        self, inputs: Tensor, hx: Tensor, params: Sequence[Tensor], *args: Any, **how: Any
    ) -> tuple[Tensor, Tensor]:
        """Return outputs and the final hidden state."""
        if isinstance(params, Tensor):
            refuse_packing()
        options = _Options(*args, **how)
        outputs, (h,) = _layers(self._layer, self._dropout, inputs, [hx], params, options)
        return outputs, h

    def _layer(
        self, inputs: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return outputs and final states of one layer in one direction: see `Layer`."""
        raise NotImplementedError


class Gru(_OneState):
    """In the place of `torch.gru`."""

    def _layer(
        self, inputs: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        h, from_inputs, from_hidden, *biases = (w.unsqueeze(0) for w in (*states, *weights))
        gates = _from_inputs(inputs.unsqueeze(1), from_inputs, biases[0] if biases else None)
        bias = biases[1] if biases else from_hidden.new_zeros(1, from_hidden.shape[1])
        outputs, *_ = GruSteps.apply(gates, h, from_hidden, bias)  # type: ignore[no-untyped-call]
        outputs = outputs.squeeze(1)
        return outputs, [outputs[-1]]


class Rnn(_OneState):
    """In the place of `torch.rnn_tanh` and `torch.rnn_relu`."""

    def __init__(self, dropout: Dropout, nonlinearity: str) -> None:
        super().__init__(dropout)
        self._is_tanh = nonlinearity == "tanh"

    def _layer(
        self, inputs: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        h, from_inputs, from_hidden, *biases = (w.unsqueeze(0) for w in (*states, *weights))
        bias = biases[0] + biases[1] if biases else None
        gates = _from_inputs(inputs.unsqueeze(1), from_inputs, bias)
        (outputs,) = RnnSteps.apply(  # type: ignore[no-untyped-call]
            gates, h, from_hidden, self._is_tanh
        )
        outputs = outputs.squeeze(1)
        return outputs, [outputs[-1]]


def lstm_cell(
    inputs: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """In the place of `torch.lstm_cell`."""
    gates = functional.linear(inputs, w_ih, b_ih) + functional.linear(hx[0], w_hh, b_hh)
    i, f, g, o = gates.chunk(4, dim=-1)
    c = torch.sigmoid(f) * hx[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(
    inputs: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """In the place of `torch.gru_cell`."""
    of_input, of_hidden = functional.linear(inputs, w_ih, b_ih), functional.linear(hx, w_hh, b_hh)
    (r, z, n), (hr, hz, hn) = of_input.chunk(3, dim=-1), of_hidden.chunk(3, dim=-1)
    new = torch.tanh(n + torch.sigmoid(r + hr) * hn)
    return new + torch.sigmoid(z + hz) * (hx - new)


class RnnCell:
    """In the place of `torch.rnn_tanh_cell` and `torch.rnn_relu_cell`."""

    def __init__(self, nonlinearity: Callable[[Tensor], Tensor]) -> None:
        self._bend = nonlinearity

    def __call__(
        self,
        inputs: Tensor,
        hx: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Tensor:
        """Return the next hidden state."""
        of_input, of_hidden = (
            functional.linear(inputs, w_ih, b_ih),
            functional.linear(hx, w_hh, b_hh),
        )
        return self._bend(of_input + of_hidden)
