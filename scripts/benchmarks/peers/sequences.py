"""Small models of sequences, for every peer; needs torch only.

`layer` is `lstm` or `gru` (an image's rows one after another), `encoder` (two transformer layers
over the rows) or `embedding` (pixels as tokens of seventeen grey levels, one table); of tokens,
`characters` (an LSTM) or `decoder` (two transformer layers that do not look ahead).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["sequence"]

_LEVELS = 17


class _Recurrent(nn.Module):
    def __init__(self, layer: str, units: int, size: int, classes: int) -> None:
        super().__init__()
        kind = {"lstm": nn.LSTM, "gru": nn.GRU}[layer]
        self.recurrent = kind(size, units, batch_first=True)
        self.head = nn.Linear(units, classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.recurrent(images.squeeze(1))[0][:, -1])
        return scores


class _Encoder(nn.Module):
    def __init__(self, units: int, size: int, classes: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(units, 4, 2 * units, dropout=0.0, batch_first=True)
        self.rows = nn.Linear(size, units)
        self.places = nn.Parameter(0.02 * torch.randn(size, units))
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(units, classes)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.rows(images.squeeze(1)) + self.places
        scores: Tensor = self.head(self.layers(rows).mean(dim=1))
        return scores


class _Embedding(nn.Module):
    def __init__(self, units: int, size: int, classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(_LEVELS, units, padding_idx=0)
        self.hidden = nn.Linear(size * size * units, 32)
        self.head = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = (images.flatten(1) * 4).round().clamp(-8, 8).long() + 8  # of standardised pixels
        scores: Tensor = self.head(torch.relu(self.hidden(self.table(tokens).flatten(1))))
        return scores


class _Characters(nn.Module):
    def __init__(self, units: int, classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, 32)
        self.recurrent = nn.LSTM(32, units, batch_first=True)
        self.head = nn.Linear(units, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.recurrent(self.table(tokens))[0])
        return scores


class _Block(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.before_attention, self.before_feed = nn.LayerNorm(units), nn.LayerNorm(units)
        self.queries_keys_values = nn.Linear(units, 3 * units)
        self.out = nn.Linear(units, units)
        self.feed = nn.Sequential(
            nn.Linear(units, 4 * units), nn.GELU(), nn.Linear(4 * units, units)
        )

    def forward(self, states: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.before_attention(states)).unflatten(2, (3, 4, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        found = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.out(found.transpose(1, 2).flatten(2))
        added: Tensor = self.feed(self.before_feed(states))
        return states + added


class _Decoder(nn.Module):
    def __init__(self, units: int, size: int, classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, units)
        self.places = nn.Parameter(0.02 * torch.randn(size, units))
        self.layers = nn.Sequential(_Block(units), _Block(units), nn.LayerNorm(units))
        self.head = nn.Linear(units, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.table(tokens) + self.places[: tokens.shape[1]]
        scores: Tensor = self.head(self.layers(states))
        return scores


def sequence(
    *, layer: str = "lstm", units: int = 32, size: int = 28, classes: int = 10
) -> nn.Module:
    """Return a classifier of images of `size` x `size`, or a model of `size` tokens."""
    if layer == "characters":
        return _Characters(units, classes)
    if layer == "decoder":
        return _Decoder(units, size, classes)
    if layer == "encoder":
        return _Encoder(units, size, classes)
    if layer == "embedding":
        return _Embedding(units, size, classes)
    return _Recurrent(layer, units, size, classes)
