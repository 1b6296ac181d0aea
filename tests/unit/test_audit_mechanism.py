"""Faults planted in what releases a noisy sum are found, and where there is none, nothing is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from distributed.audit import mechanism as of_steps
from distributed.driver import build_components
from distributed.privacy.protection import Protection
from distributed.strategies.private import PrivateEngine
from federated.aggregation import ClipNorm, Mean, Partial, Reduction
from federated.audit import mechanism as of_rounds
from federated.flower import messages
from federated.protection import central, ftrl
from federated.protection.central import NoisySum
from federated.updates import Weights
from heliotrope.audit.checks import Check, Noise, check_denominator, check_noise, check_sensitivity
from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.training.loop import TrainingBatch
from heliotrope.training.per_example import ClippedGradients
from tests.support import compose

SEEDS, FEW = range(20), range(2)
Plant = Callable[[pytest.MonkeyPatch], None]

STEPS = (
    "data=digits",
    "data.fit=none",
    "distributed/privacy=dpsgd",
    "distributed.launcher=inline",
    "distributed.workers=1",
    "distributed.privacy.noise_multiplier=1.3",
    "distributed.privacy.clip=0.7",
)


def half_the_noise(patch: pytest.MonkeyPatch) -> None:
    drawn = Protection.noise
    patch.setattr(Protection, "noise", lambda self, *given: drawn(self, *given) / 2)


def no_noise(patch: pytest.MonkeyPatch) -> None:
    drawn = Protection.noise
    patch.setattr(Protection, "noise", lambda self, *given: drawn(self, *given) * 0)


def the_same_noise_each_step(patch: pytest.MonkeyPatch) -> None:
    drawn = Protection.noise
    patch.setattr(Protection, "noise", lambda self, _, count: drawn(self, 1, count))


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClippedGradients, "_scale", lambda _, norms: torch.ones_like(norms))


def twice_the_clip(patch: pytest.MonkeyPatch) -> None:
    scale = ClippedGradients._scale
    patch.setattr(ClippedGradients, "_scale", lambda self, norms: scale(self, norms / 2))


def realised_denominator(patch: pytest.MonkeyPatch) -> None:
    step = PrivateEngine.step

    def counting(self: PrivateEngine, batch: TrainingBatch) -> None:
        before, self._protection.expected = self._protection.expected, max(1, len(batch))
        try:
            step(self, batch)
        finally:
            self._protection.expected = before

    patch.setattr(PrivateEngine, "step", counting)


def noise_of_each_worker(patch: pytest.MonkeyPatch) -> None:
    """Each rank adds noise before the sums of all ranks are added: with one, nothing is wrong."""
    drawn, release = Protection.noise, PrivateEngine._release

    def own(self: PrivateEngine) -> None:
        seed, rank = self._step_seed, self._topology.rank
        noise = drawn(self._protection, seed + rank, sum(p.numel() for p in self._trained))
        for p, part in zip(
            self._trained, noise.split([p.numel() for p in self._trained]), strict=True
        ):
            assert p.grad is not None
            p.grad += part.view_as(p)
        release(self)

    patch.setattr(Protection, "noise", lambda _, __, count: torch.zeros(count))
    patch.setattr(PrivateEngine, "_release", own)


def noise_that_differs_by_worker(patch: pytest.MonkeyPatch) -> None:
    """Each rank adds noise of its own to the sum of all: their models part."""
    release = PrivateEngine._release

    def own(self: PrivateEngine) -> None:
        self._step_seed += self._topology.rank
        release(self)

    patch.setattr(PrivateEngine, "_release", own)


FAULTS = {
    plant.__name__: (plant, name)
    for plant, name in (
        (half_the_noise, "standard deviation"),
        (no_noise, "standard deviation"),
        (the_same_noise_each_step, "noise of its own"),
        (no_clipping, "no more than the clip"),
        (twice_the_clip, "no more than the clip"),
        (realised_denominator, "divided by"),
        (noise_of_each_worker, "once a worker"),
        (noise_that_differs_by_worker, "once a worker"),
    )
}


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.passed is False]


def checks_of_steps(seed: int, *more: str) -> list[Check]:
    run = replace(compose("distributed", *STEPS, *more), seed=seed)
    dataset = build_components(run).dataset if more else digits()
    return of_steps.mechanism_checks(run, dataset, None)


def clean(seeds: range, checks: Callable[[int], list[Check]], count: int) -> None:
    for seed in seeds:
        found = checks(seed)
        assert [check for check in found if not check.passed] == []
        assert len(found) == count


def caught(name: str, seeds: range, checks: Callable[[int], list[Check]]) -> None:
    found = [failed(checks(seed)) for seed in seeds]
    assert sum(any(name in check for check in each) for each in found) == len(seeds)


def each_is_caught(
    faults: Mapping[str, tuple[Callable[[pytest.MonkeyPatch], None], str]],
    checks: Callable[[int], list[Check]],
) -> None:
    for plant, name in faults.values():
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            caught(name, SEEDS, checks)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    clean(FEW, checks_of_steps, 6)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, name = FAULTS[fault]
    plant(monkeypatch)
    caught(name, FEW, checks_of_steps)


@pytest.mark.slow
def test_with_20_seeds_faults_are_found_and_nothing_else() -> None:
    clean(SEEDS, checks_of_steps, 6)
    each_is_caught(FAULTS, checks_of_steps)


@pytest.mark.parametrize(
    "setting",
    [
        ["model=logistic", "data=heart", "data.fit=none", "distributed.batch_size=4"],
        pytest.param(["model=cnn"], marks=pytest.mark.slow),
        ["model=mlp", "model.dropout=0.5", "distributed.accumulation_steps=2"],
        ["optimizer.clip_norm=0.01", "loss.l2=0.5", "optimizer.momentum=0.9"],
    ],
    ids=lambda setting: setting[0],
)
def test_other_runs_pass_and_fail_as_well(
    setting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert failed(checks_of_steps(0, *setting)) == []
    with monkeypatch.context() as patch:
        half_the_noise(patch)
        assert failed(checks_of_steps(0, *setting))
    no_clipping(monkeypatch)
    assert failed(checks_of_steps(0, *setting))


ROUNDS = (
    "data=digits",
    "data.fit=none",
    "federated.pool=inprocess",
    "federated.partition.clients=200",
    "federated.clients_per_round=60",
    "federated.privacy.noise_multiplier=1.3",
    "federated.privacy.clip=0.7",
)


def half_the_noise_of_rounds(patch: pytest.MonkeyPatch) -> None:
    drawn = central.noisy_mean
    patch.setattr(central, "noisy_mean", lambda a, b, sigma, *more: drawn(a, b, sigma / 2, *more))


def no_noise_of_rounds(patch: pytest.MonkeyPatch) -> None:
    drawn = central.noisy_mean
    patch.setattr(central, "noisy_mean", lambda a, b, sigma, *more: drawn(a, b, 0 * sigma, *more))


def the_same_noise_each_round(patch: pytest.MonkeyPatch) -> None:
    drawn = NoisySum._generator
    patch.setattr(NoisySum, "_generator", lambda self, *given: drawn(self, *given[:-1], 1))


def no_clipping_of_updates(patch: pytest.MonkeyPatch) -> None:
    factors = ClipNorm.factors
    patch.setattr(ClipNorm, "factors", lambda *given: factors(*given) * 0 + 1)


def weights_as_claimed(patch: pytest.MonkeyPatch) -> None:
    told = NoisySum.told
    patch.setattr(NoisySum, "told", lambda *given: {**told(*given), messages.EQUAL_WEIGHTS: False})


def realised_cohort(patch: pytest.MonkeyPatch) -> None:
    release = NoisySum.release

    def counting(self: NoisySum, number: int, mean: Mean | None, beginning: Weights) -> Mean:
        before = self._cohort
        self._cohort = before if mean is None else mean.weight
        try:
            return release(self, number, mean, beginning)
        finally:
            self._cohort = before

    patch.setattr(NoisySum, "release", counting)


def noise_of_each_lane(patch: pytest.MonkeyPatch) -> None:
    """Each lane adds noise to its part of the sum: with a single one, nothing is wrong."""
    drawn, partial = central.noisy_mean, Reduction.partial
    generator = torch.Generator().manual_seed(1)

    def noisy(self: Reduction) -> Partial | None:
        found = partial(self)
        if found is None:
            return None
        for name, value in found.sums.items():
            if name in found.clipped:
                shape = value[0].shape
                noise = torch.randn(shape, generator=generator, dtype=torch.float64)
                value[0] += 1.3 * 0.7 * noise
        return found

    patch.setattr(Reduction, "partial", noisy)
    patch.setattr(central, "noisy_mean", lambda a, b, _, *more: drawn(a, b, 0.0, *more))


ROUND_FAULTS = {
    plant.__name__: (plant, name)
    for plant, name in (
        (half_the_noise_of_rounds, "standard deviation"),
        (no_noise_of_rounds, "standard deviation"),
        (the_same_noise_each_round, "noise of its own"),
        (no_clipping_of_updates, "no more than the clip"),
        (weights_as_claimed, "no more than the clip"),
        (realised_cohort, "divided by"),
        (noise_of_each_lane, "standard deviation of the noise, 3 workers"),
    )
}


def checks_of_rounds(seed: int, kind: str = "central", *more: str) -> list[Check]:
    run = compose("federated", f"federated/privacy={kind}", *ROUNDS, *more)
    run = replace(run, seed=seed)
    return of_rounds.mechanism_checks(run, digits(), None)


@cache
def digits() -> Dataset:
    return load(compose("federated", "data=digits", "data.fit=none").data, 0)


@pytest.mark.parametrize("kind", ["central", "adaptive", "ftrl"])
def test_nothing_is_found_where_nothing_is_wrong_with_rounds(kind: str) -> None:
    clean(FEW, lambda seed: checks_of_rounds(seed, kind), 7)


@pytest.mark.parametrize("fault", ROUND_FAULTS)
def test_a_planted_fault_of_rounds_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, name = ROUND_FAULTS[fault]
    plant(monkeypatch)
    caught(name, FEW, checks_of_rounds)


@pytest.mark.slow
def test_with_20_seeds_faults_of_rounds_are_found_and_nothing_else() -> None:
    clean(SEEDS, checks_of_rounds, 7)
    clean(SEEDS, lambda seed: checks_of_rounds(seed, "adaptive"), 7)
    each_is_caught(ROUND_FAULTS, checks_of_rounds)


def test_rounds_of_adaptive_clips_and_of_fixed_cohorts(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = "federated.privacy.sampling=fixed"
    assert failed(checks_of_rounds(0, "central", fixed)) == []
    half_the_noise_of_rounds(monkeypatch)
    assert failed(checks_of_rounds(0, "central", fixed))
    assert failed(checks_of_rounds(0, "adaptive"))
    assert failed(checks_of_rounds(0, "ftrl"))


def test_noise_that_does_not_cancel_as_it_should_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of its own in each round would be paid for as noise that partly cancels."""
    monkeypatch.setattr(ftrl, "noise_weights", lambda _, count: np.eye(count)[0])
    assert failed(checks_of_rounds(0, "ftrl"))
    assert failed(checks_of_rounds(0, "ftrl", "federated.privacy.band=1")) == []


def test_buffers_that_are_told_are_found() -> None:
    context = SimpleNamespace(model=nn.BatchNorm1d(3))
    replay = SimpleNamespace(
        _context=context,
        _released=lambda *_: {"weight": torch.ones(3), "running_mean": torch.ones(3)},
    )
    assert of_rounds._Replay._only_trained(replay).passed is False  # type: ignore[arg-type]
    replay._released = lambda *_: {"weight": torch.ones(3), "running_mean": torch.zeros(3)}
    assert of_rounds._Replay._only_trained(replay).passed  # type: ignore[arg-type]


def test_a_run_without_protection_has_nothing_to_check() -> None:
    run: Run = compose("distributed", "data=digits", *STEPS[3:5])
    assert of_steps.mechanism_checks(run, build_components(run).dataset, None) == []


def test_a_statistic_raises_an_alarm_as_seldom_as_it_says() -> None:
    generator, alarms, tried = np.random.default_rng(5), 0, 400
    for _ in range(tried):
        noise = 2.5 * generator.standard_normal((2, 300))
        checks = check_noise([Noise("a", noise), Noise("b", noise)], 2.5, 0.05)
        alarms += any(not check.passed for check in checks)
    assert 0 < alarms <= 0.05 * tried + 3 * (0.05 * tried) ** 0.5


def test_what_was_never_clipped_says_nothing() -> None:
    assert check_sensitivity({"small": 0.2}, 1.0).passed is None
    assert check_sensitivity({"small": 0.2, "huge": 1.0}, 1.0).passed
    assert check_sensitivity({"small": 0.2, "huge": 0.5}, 1.0).passed is None
    assert check_sensitivity({"small": 1.2, "huge": 1.0}, 1.0).passed is False


def test_noise_of_no_length_and_few_numbers() -> None:
    nothing = np.zeros((2, 3))
    assert not check_noise([Noise("a", nothing)], 1.0, 1e-6)[0].passed
    assert check_denominator({0: 8.0, 9: 8.001}, 8.0).passed
    assert not check_denominator({0: 8.0, 9: 9.0}, 8.0).passed
