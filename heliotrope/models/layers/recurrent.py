"""Recurrent layers on token vectors, with dropout that is the same all along a sequence.

Shapes: B sequences, L tokens of the longest, D numbers of a token vector, H units.
"""

from __future__ import annotations

from torch import Tensor, nn

from heliotrope.models.layers.blocks import check_dropout, check_size, dropout_layer
from heliotrope.models.layers.tokens import forget_unknown

__all__ = ["Recurrent"]


class Recurrent(nn.Module):
    """Vectors of tokens, `layers` recurrent layers, and dropout before, between and after them.

    What it makes of a token depends on those before it alone: padding behind a text changes
    nothing. Vectors have `width` numbers, states `hidden` ones: D and H.

    Raises
    ------
    ConfigError
        If a size is less than 1, or dropout is out of [0, 1).
    """

    def __init__(
        self,
        kind: type[nn.GRU | nn.LSTM],
        vocabulary: int,
        width: int,
        hidden: int,
        layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        for key, size in (("width", width), ("hidden", hidden), ("layers", layers)):
            check_size(f"model.{key}", size)
        check_dropout(dropout)
        self.embedding = nn.Embedding(vocabulary, width)
        forget_unknown(self.embedding)
        sizes = [width] + [hidden] * (layers - 1)
        self.blocks = nn.ModuleList(_Layer(kind, size, hidden, dropout) for size in sizes)
        self.dropout = dropout_layer(dropout, variational=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the last layer's states, [B, L, H], after each of the tokens [B, L]."""
        states: Tensor = self.embedding(tokens)
        for block in self.blocks:
            states = block(states)
        dropped: Tensor = self.dropout(states)
        return dropped


class _Layer(nn.Module):
    def __init__(
        self, kind: type[nn.GRU | nn.LSTM], inputs: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout_layer(dropout, variational=True)
        self.layer = kind(inputs, hidden, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        states: Tensor = self.layer(self.dropout(inputs))[0]
        return states
