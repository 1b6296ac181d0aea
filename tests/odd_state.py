"""Legal modules of users that keep state where it is hard to see, as do those of `odd_modules`.

What they do with it shows only after more steps than are tried before a way of training is
chosen, or on batches that are rare: whether it is seen must not hang on the results of a few steps.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.odd_modules import Base

__all__ = ["MODULES"]

_LATE = 9  # steps; more than are tried
_steps = 0
_calls = {"helper": 0}


class RareBranch(Base):
    def between(self, h: Tensor) -> Tensor:
        values, _ = h.detach().max(dim=1)
        return h if values.max() < 1000.0 else 2 * h


class PythonGenerator(Base):
    def __init__(self) -> None:
        super().__init__()
        self.generator = random.Random(3)

    def between(self, h: Tensor) -> Tensor:
        return h if self.generator.random() > 0.02 else 2 * h


class OldNumpyGenerator(Base):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.RandomState(3)

    def between(self, h: Tensor) -> Tensor:
        return h if self.generator.rand() > 0.02 else 2 * h


class Iterator(Base):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()

    def between(self, h: Tensor) -> Tensor:
        return h if next(self.numbers) < _LATE else 2 * h


class _Annealing:
    def __init__(self) -> None:
        self.steps = 0

    def __call__(self) -> float:
        self.steps += 1
        return 1.0 if self.steps < _LATE else 2.0


class Annealed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.factor = _Annealing()

    def between(self, h: Tensor) -> Tensor:
        return h * self.factor()


class _Slots:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


class Slotted(Base):
    def __init__(self) -> None:
        super().__init__()
        self.state = _Slots()

    def between(self, h: Tensor) -> Tensor:
        self.state.n += 1
        return h if self.state.n < _LATE else 2 * h


class ClosureCounter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.tick = _counter()

    def between(self, h: Tensor) -> Tensor:
        return h if self.tick() < _LATE else 2 * h


def _counter() -> Callable[[], int]:
    n = 0

    def tick() -> int:
        nonlocal n
        n += 1
        return n

    return tick


class HookCounter(Base):
    def __init__(self) -> None:
        super().__init__()
        tick = _counter()

        def double_late(_: nn.Module, __: Any, h: Tensor) -> Tensor:
            return h if tick() < _LATE else 2 * h

        self.fc.register_forward_hook(double_late)


class GlobalCounter(Base):
    def between(self, h: Tensor) -> Tensor:
        global _steps  # noqa: PLW0603 - users do
        _steps += 1
        return h


class HelpersGlobal(Base):
    def between(self, h: Tensor) -> Tensor:
        return _noted(h)


def _noted(h: Tensor) -> Tensor:
    _calls["helper"] += 1
    return h


class ClassCounter(Base):
    n = 0

    def between(self, h: Tensor) -> Tensor:
        type(self).n += 1
        return h


class ClassDictionary(Base):
    state = {"n": 0}  # noqa: RUF012 - users do

    def between(self, h: Tensor) -> Tensor:
        self.state["n"] += 1
        return h


class PythonLists(Base):
    def between(self, h: Tensor) -> Tensor:
        return h if max(max(row) for row in h.tolist()) < 1000.0 else 2 * h


class GradientHook(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc.weight.register_hook(lambda g: g.clamp(-0.01, 0.01))


class AccumulatedHook(Base):
    def __init__(self) -> None:
        super().__init__()
        self.out.weight.register_post_accumulate_grad_hook(_halve)


def _halve(weight: Tensor) -> None:
    assert weight.grad is not None
    weight.grad *= 0.5


class WeightWithGain(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc.weight.gain = 2.0

    def hidden(self, x: Tensor) -> Tensor:
        weight = self.fc.weight
        return nn.functional.linear(x.flatten(1), weight * weight.gain, self.fc.bias)


class HookOnItself(Base):
    """A hook that finds the module's own weight in its closure."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((32,), 1.5))
        self.fc.register_forward_hook(lambda _, __, h: h * self.scale)


class ClippingHook(Base):
    """A hook on an activation's gradient that is registered only where there is one."""

    def between(self, h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(lambda g: g if g.norm() < 1000.0 else g * 1000.0 / g.norm())
        return h


class HalvingHook(Base):
    def between(self, h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(lambda g: 0.5 * g)
        return h


class Bfloat16(Base):
    def __init__(self) -> None:
        super().__init__()
        self.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.fc.weight.dtype))


class _Settings:
    def __init__(self) -> None:
        self.inner = _Slots()
        self.scale = float("nan")
        self.itself = self


class PlainObject(Base):
    """Objects inside of objects, which never change."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = _Settings()
        self.activation = torch.tanh
        self.lookup = {(1, 2): np.arange(3)}

    def between(self, h: Tensor) -> Tensor:
        return self.activation(h)


MODULES: list[type[nn.Module]] = [
    value
    for value in list(globals().values())
    if isinstance(value, type) and issubclass(value, Base) and value is not Base
]
