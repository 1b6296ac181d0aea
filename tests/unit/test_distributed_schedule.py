"""The learning rate over a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from distributed.loop.schedule import LearningRate, check_schedule
from federated.components import build_components
from heliotrope import registry
from heliotrope.config import DistributedConfig
from heliotrope.config.schedule import schedule_of
from heliotrope.errors import ConfigError
from tests.support import compose


def _factors(steps: int, **keys: object) -> list[float]:
    cfg = DistributedConfig(**keys)  # type: ignore[arg-type]
    return [schedule_of(cfg).factor(step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_decaying_schedule_goes_from_one_towards_zero_without_rising(schedule: str) -> None:
    factors = _factors(50, lr_schedule=schedule)
    assert factors[0] == 1.0
    assert factors[25] == pytest.approx(0.5)
    assert 0.0 < factors[-1] < 0.03
    assert factors == sorted(factors, reverse=True)


def test_a_constant_schedule_stays() -> None:
    assert set(_factors(9)) == {1.0}


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step"])
def test_warm_up_rises_evenly_and_the_schedule_has_the_rest(schedule: str) -> None:
    keys = {"lr_schedule": schedule, "lr_decay_steps": 7}
    factors = _factors(54, lr_warmup_steps=4, **keys)
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == _factors(50, **keys)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "one_cycle"])
def test_a_run_longer_than_its_schedule_keeps_the_last_rate(schedule: str) -> None:
    cfg = DistributedConfig(lr_schedule=schedule)
    factors = [schedule_of(cfg).factor(step, 10) for step in range(14)]
    assert factors[:10] == _factors(10, lr_schedule=schedule)
    assert set(factors[10:]) == {factors[9]}


def test_a_warm_up_must_end_before_the_horizon() -> None:
    cfg = DistributedConfig(
        epochs=9, batch_size=10, lr_schedule="cosine", lr_horizon=3, lr_warmup_steps=9
    )
    with pytest.raises(ConfigError, match=r"lr_warmup_steps=9 .*distributed.lr_horizon=3 "):
        check_schedule(cfg, 21)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda done: None, "at step 3 of 9, counted from 0, gives None"),
        (lambda done: "1", "gives '1'"),
        (lambda done: float("nan") if done > 0.5 else 1.0, "at step 7 of 9, .* gives nan"),
        (lambda done: -done, "gives -0.16"),
        (lambda done: torch.ones(2), "gives tensor"),
        (lambda done: 1 / done, "at step 3 of 9, .* raises ZeroDivisionError"),
    ],
)
def test_an_own_schedule_that_gives_no_rate_is_refused(
    value: Callable[[float], object], said: str
) -> None:
    def mine(done: float) -> object:
        return value(done)

    registry.register("schedule", "mine", mine, "mine.py, line 3")
    cfg = DistributedConfig(epochs=3, batch_size=10, lr_schedule="mine", lr_warmup_steps=3)
    with pytest.raises(
        ConfigError, match=rf"distributed.lr_schedule=mine \(mine.py, line 3\) .*{said}"
    ):
        check_schedule(cfg, 21)


def test_an_own_schedule_may_give_numbers_of_torch_and_is_asked_of_both_modes() -> None:
    def fine(done: float) -> torch.Tensor:
        return torch.tensor(1 - done)

    def none(done: float) -> None: ...

    registry.register("schedule", "fine", fine, "mine.py, line 3")
    registry.register("schedule", "none", none, "mine.py, line 7")
    check_schedule(DistributedConfig(epochs=3, batch_size=10, lr_schedule="fine"), 21)
    run = compose("federated", "experiment=quickstart")
    run.federated.lr_schedule = "none"
    with pytest.raises(ConfigError, match=r"lr_schedule=none .* at step 0 of 20"):
        build_components(run)


def test_steps_decay_by_the_factor() -> None:
    factors = _factors(8, lr_schedule="step", lr_decay_steps=3, lr_decay_factor=0.5)
    assert factors == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_one_cycle_is_that_of_torch() -> None:
    steps = 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # torch's last step is where the cycle ends; ours ends it after the last step.
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=steps + 1, pct_start=13 / (steps + 1), cycle_momentum=False
    )
    expected = []
    for _ in range(steps):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    factors = _factors(steps, lr_schedule="one_cycle")
    assert factors == pytest.approx(expected, abs=1e-9)
    assert factors.index(max(factors)) == 12


def test_each_step_has_the_rate_of_its_place_in_the_whole_run() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.5, 0.05)]
    optimizer = torch.optim.SGD(groups)  # such as a plug-in makes, with a tenth for some weights
    keys = ("distributed.lr_schedule=linear", "distributed.epochs=2", "optimizer.lr=0.5")
    learning_rate = LearningRate(compose("distributed", *keys), optimizer, epoch_steps=4)
    rates = []
    for step in range(4, 8):  # the second of two epochs
        learning_rate.set(step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates == [pytest.approx([lr, lr / 10]) for lr in (0.25, 0.1875, 0.125, 0.0625)]


@pytest.mark.parametrize("key", ["lr_warmup_steps", "lr_decay_steps"])
def test_a_schedule_longer_than_the_run_is_refused(key: str) -> None:
    def check(value: int) -> None:
        cfg = DistributedConfig(epochs=3, batch_size=10, **{key: value})  # type: ignore[arg-type]
        check_schedule(cfg, 21)  # 3 epochs of 3 steps

    check(8)
    with pytest.raises(ConfigError, match=rf"distributed.{key}=9 .*distributed.epochs=3 .*below 9"):
        check(9)
