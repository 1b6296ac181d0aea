"""Legal modules of users that break fast paths; for inputs of 64 numbers and ten classes."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

__all__ = ["MODULES"]


class Base(nn.Module):
    """Two dense layers; the others change one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 32)
        self.out = nn.Linear(32, 10)

    def hidden(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.between(self.hidden(x))))


# --- products of parameters, and weights used in several places ------------------------------


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.randn(64, 4) * 0.3)
        self.V = nn.Parameter(torch.randn(4, 10) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ (self.U @ self.V)


class Lora(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc.weight.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(3, 64) * 0.1)
        self.b = nn.Parameter(torch.randn(32, 3) * 0.1)

    def hidden(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.fc(x) + (x @ self.a.T) @ self.b.T


class FedPara(Base):
    def __init__(self) -> None:
        super().__init__()
        self.x1, self.y1, self.x2, self.y2 = (
            nn.Parameter(torch.randn(n, 3) * 0.4) for n in (32, 64, 32, 64)
        )

    def hidden(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ ((self.x1 @ self.y1.T) * (self.x2 @ self.y2.T)).T


class Prototypes(Base):
    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(10, 32) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        return h @ self.centres.T - 0.5 * self.centres.square().sum(1)


class Hypernetwork(Base):
    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(5))
        self.make = nn.Parameter(torch.randn(5, 320) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        w = (self.code @ self.make).view(10, 32)
        return F.linear(torch.tanh(self.hidden(x)), w)


class Gram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(64, 10) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ (self.A @ self.A.T)) @ self.A


class ScalarProduct(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.tensor(0.1))

    def between(self, h: Tensor) -> Tensor:
        return h * self.scale + self.shift * self.scale


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(64, 64)
        self.decode = nn.Linear(64, 64, bias=False)
        self.decode.weight = self.encode.weight
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.decode(torch.relu(self.encode(x.flatten(1)))))


class Frozen(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc.requires_grad_(False)


class Unused(Base):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)


class OldWeightNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and still in use
            self.fc = weight_norm(self.fc)


class WeightNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc = parametrizations.weight_norm(self.fc)


class SpectralNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc = parametrizations.spectral_norm(self.fc)


# --- weights and values seen behind autograd's back -------------------------------------------


class DataNorm(Base):
    def hidden(self, x: Tensor) -> Tensor:
        w = self.fc.weight
        return F.linear(x.flatten(1), w / w.data.norm(dim=1, keepdim=True), self.fc.bias)


class ClampData(Base):
    def hidden(self, x: Tensor) -> Tensor:
        self.fc.weight.data.clamp_(-0.05, 0.05)
        return self.fc(x.flatten(1))


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        array = w.detach().numpy()
        return torch.from_numpy(np.sign(array) * np.abs(array).mean())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Binary(Base):
    def hidden(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), _Sign.apply(self.fc.weight), self.fc.bias)


class ToList(Base):
    def hidden(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.fc(x * (1.0 / max(1e-3, x.detach().std().tolist())))


class NumpyInput(Base):
    def hidden(self, x: Tensor) -> Tensor:
        return self.fc(torch.from_numpy(np.tanh(x.flatten(1).numpy())))


class WeightBranch(Base):
    def hidden(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.fc(x * 0.5 if self.fc.weight.norm() > 3.0 else x)


# --- state besides the weights ------------------------------------------------------------------


class Counter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def between(self, h: Tensor) -> Tensor:
        self.n += self.training
        return h * (1 + self.n * 1e-4)


class LateCounter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.state = {"steps": 0}

    def between(self, h: Tensor) -> Tensor:
        self.state["steps"] += 1
        return h if self.state["steps"] < 9 else 2 * h


class RunningMean(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("m", torch.zeros(32), persistent=False)

    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.m.mul_(0.9).add_(h.mean(0), alpha=0.1)
        return h - self.m


class Cache(Base):
    def __init__(self) -> None:
        super().__init__()
        self.ramp: Tensor | None = None

    def between(self, h: Tensor) -> Tensor:
        if self.ramp is None:
            self.ramp = torch.linspace(0.5, 1.5, 32, dtype=h.dtype)
        return h * self.ramp


class FixedBuffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 32))

    def between(self, h: Tensor) -> Tensor:
        return h * self.scale


class EvalMode(Base):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.4)
        self.eval()

    def between(self, h: Tensor) -> Tensor:
        return self.drop(h)


# --- random draws ------------------------------------------------------------------------------


class LayerDrop(Base):
    def __init__(self) -> None:
        super().__init__()
        self.mid = nn.Linear(32, 32)

    def between(self, h: Tensor) -> Tensor:
        return h + (0.0 if random.random() < 0.5 else 1.0) * torch.relu(self.mid(h))


class NumpyNoise(Base):
    def between(self, h: Tensor) -> Tensor:
        return h + float(np.random.rand()) * 0.1  # noqa: NPY002


class TorchNoise(Base):
    def between(self, h: Tensor) -> Tensor:
        return h + 0.1 * torch.randn_like(h)


class TwiceDropout(Base):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def between(self, h: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.drop(h)))


class FunctionDropout(Base):
    def between(self, h: Tensor) -> Tensor:
        h = F.dropout(h, 0.3, self.training)
        return F.dropout(torch.tanh(h), 0.2, training=self.training)


class CausalAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.view(-1, 8, 2, 4).transpose(1, 2)
            for part in self.qkv(x.view(-1, 8, 8)).chunk(3, dim=-1)
        )
        p = 0.2 if self.training else 0.0
        h = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.out(h.transpose(1, 2).flatten(1))


class OwnGenerator(Base):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def between(self, h: Tensor) -> Tensor:
        return h + 0.1 * torch.randn(h.shape, generator=self.generator, dtype=h.dtype)


# --- across examples ------------------------------------------------------------------------


class BatchNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(32)

    def between(self, h: Tensor) -> Tensor:
        return self.bn(h)


class BatchNormNoStats(Base):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(32, track_running_stats=False)

    def between(self, h: Tensor) -> Tensor:
        return self.bn(h)


class BatchCentre(Base):
    def between(self, h: Tensor) -> Tensor:
        return h - h.mean(0, keepdim=True)


class BatchMax(Base):
    def between(self, h: Tensor) -> Tensor:
        return h / h.abs().max()


class Contrast(Base):
    def between(self, h: Tensor) -> Tensor:
        return torch.softmax(h @ h.T, dim=1) @ h


MODULES: list[type[nn.Module]] = [
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, nn.Module) and value is not nn.Module
]
