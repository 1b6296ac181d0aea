"""A user's module that cannot be trained is refused before anything starts, with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from federated.client_state import model_of_client
from federated.engine.context import assemble, divide
from heliotrope import config, registry
from heliotrope.config import Run
from heliotrope.data import load
from heliotrope.errors import ConfigError
from heliotrope.models import build
from heliotrope.models.personal import personal_names
from heliotrope.tasks import task_of
from tests.support import compose, small_task


class _Odd(nn.Module):
    """A linear layer, and what makes it odd."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.out = nn.Linear(64, 10)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.flat(inputs))


class _Extra(_Odd):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: dict[str, int]) -> None: ...


class _Pair(_Odd):
    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs), None


class _NeedsGpu(_Odd):
    def forward(self, inputs: Tensor) -> Tensor:
        raise RuntimeError("No CUDA GPUs are available")


class _SmallBatches(_Odd):
    """What only evaluation mode can do for one example, and what counts its calls."""

    def __init__(self) -> None:
        super().__init__(norm=nn.BatchNorm1d(64), calls=0)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.out(self.norm(self.flat(inputs)))


def _frozen() -> nn.Module:
    return _Odd().requires_grad_(False)


_USELESS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "complex": (lambda: _Odd(w=nn.Parameter(torch.ones(2, dtype=torch.complex64))), "its w is"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "1.weight has no size"),
    "extra state": (_Extra, "_extra_state is a dict"),
    "frozen": (_frozen, "requires_grad=True"),
    "no parameters": (nn.Flatten, "requires_grad=True"),
    "columns": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), r"\[2, 7\].*\[2, 10\]"),
    "a pair": (_Pair, "gives a tuple"),
    "classes": (lambda: nn.Sequential(nn.Flatten(), _Largest()), "torch.int64 of shape"),
}


class _Largest(_Odd):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(inputs).argmax(dim=1)


_TASK = small_task(10, (1, 8, 8))


class _Tied(_Odd):
    def __init__(self, personal: object) -> None:
        super().__init__(personal=personal)
        self.user = nn.Linear(2, 3)
        self.alias = self.user.bias


def _built(make: Callable[[], nn.Module]) -> nn.Module:
    def mine() -> nn.Module:
        return make()

    registry.register("model", "mine", mine, "mine.py, line 3")
    return build(config.ModelConfig(name="mine"), _TASK, 0)


@pytest.mark.parametrize("kind", _USELESS)
def test_a_module_that_cannot_be_trained_is_refused_by_name(kind: str) -> None:
    make, words = _USELESS[kind]
    with pytest.raises(
        ConfigError, match=r"model=mine \(mine.py, line 3\) cannot be trained"
    ) as at:
        _built(make)
    at.match(words)


_LEAKING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a typo": (lambda: _Odd(personal=("out.", "users.")), "personal='users.', but no weight"),
    "a text": (lambda: _Odd(personal="out."), "_Odd.personal='out.' must be the beginnings"),
    "a number": (lambda: _Odd(personal=3), "_Odd.personal=3 must be"),
    "numbers": (lambda: _Odd(personal=(3,)), r"_Odd.personal=\(3,\) must be"),
    "tied": (lambda: _Tied(("user.",)), "personal='user.', but user.bias shares .* with alias"),
}


@pytest.mark.parametrize("kind", _LEAKING)
def test_weights_that_would_leave_their_client_unseen_are_refused(kind: str) -> None:
    make, words = _LEAKING[kind]
    with pytest.raises(ConfigError, match=rf"model=mine \(mine.py, line 3\): .*{words}"):
        _built(make)


def test_personal_weights_are_those_that_begin_so_tied_or_not() -> None:
    assert personal_names(_Odd()) == ()
    assert personal_names(_Odd(personal=["out."])) == ("out.weight", "out.bias")
    both = personal_names(_Tied(("user.", "alias")))
    assert sorted(both) == ["alias", "user.bias", "user.weight"]


def test_the_model_of_one_client_has_the_same_personal_weights() -> None:
    whole, one = _Odd(personal=("out.",)), _Odd()
    whole.for_one = lambda: one  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"out\.bias is personal in _Odd or in what its for_one"):
        model_of_client(whole)
    one.personal = ("out.",)  # type: ignore[assignment]
    assert model_of_client(whole) is one


@pytest.mark.parametrize("make", [_Odd, _NeedsGpu, _SmallBatches, lambda: _Odd().double()])
def test_what_can_be_trained_is_left_as_it_was_built(make: Callable[[], nn.Module]) -> None:
    model = _built(make)
    assert model.training
    assert getattr(model, "calls", 0) == 0


def test_weights_that_flower_cannot_send_are_refused_there_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = _built(lambda: _Odd().bfloat16())
    run: Run = compose("federated", "experiment=quickstart")
    dataset = load(run.data, run.seed)
    monkeypatch.setattr("federated.engine.context.build", lambda *_: half)
    with pytest.raises(ConfigError, match=r"out.weight is torch.bfloat16.*float32"):
        assemble(run, task_of(dataset), dataset.train, divide(run, dataset))
