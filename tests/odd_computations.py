"""Legal modules of users that compute in unusual shapes, as do those of `odd_modules`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.odd_modules import Base

__all__ = ["MODULES"]


class Inplace(Base):
    def between(self, h: Tensor) -> Tensor:
        h = h * 1
        h.add_(0.5).mul_(0.9)
        return F.relu_(h)


class LayerNorms(Base):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.LayerNorm(32)
        self.b = nn.GroupNorm(4, 32)

    def between(self, h: Tensor) -> Tensor:
        return self.b(self.a(h))


class TopK(Base):
    def between(self, h: Tensor) -> Tensor:
        values, places = h.topk(5, dim=1)
        return torch.zeros_like(h).scatter(1, places, values)


class Masked(Base):
    def between(self, h: Tensor) -> Tensor:
        return h + h[h > 0].mean()


class Recomputed(Base):
    def between(self, h: Tensor) -> Tensor:
        return checkpoint(torch.tanh, h, use_reentrant=False)


class Spectrum(Base):
    def between(self, h: Tensor) -> Tensor:
        return torch.fft.rfft(h, n=62).real


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, groups=1)
        self.norm = nn.InstanceNorm2d(4, affine=True)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.gelu(self.norm(self.conv(x.view(-1, 1, 8, 8)))), 2)
        return self.out(h.flatten(1))


class HandAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.view(-1, 8, 8)).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), dim=-1)
        return self.out((weights @ v).flatten(1))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(17, 6, padding_idx=0)
        self.out = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x.flatten(1) * 4).round().clamp(-8, 8).long() + 8
        return self.out(self.table(tokens).mean(1))


class Recurrent(nn.Module):
    kind: Callable[..., nn.Module] = nn.LSTM

    def __init__(self) -> None:
        super().__init__()
        self.rnn = type(self).kind(8, 12, batch_first=True)
        self.out = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x.view(-1, 8, 8))[0][:, -1])


class Gru(Recurrent):
    kind = nn.GRU


class DeepLstm(Recurrent):
    kind = partial(nn.LSTM, num_layers=2, dropout=0.3, bidirectional=True, proj_size=6)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.view(-1, 8, 8)).flatten(1))


class CausalEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(8).to(x)
        return self.out(self.layers(x.view(-1, 8, 8), mask=mask).flatten(1))


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(17, 6, mode="max", padding_idx=8)
        self.out = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x.flatten(1) * 4).round().clamp(-8, 8).long() + 8
        return self.out(self.table(tokens))


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 12)
        self.out = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for row in x.view(-1, 8, 8).unbind(1):
            state = self.cell(row, state)
        return self.out(state[0])


MODULES: list[type[nn.Module]] = [
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, nn.Module) and value not in (nn.Module, Base)
]
