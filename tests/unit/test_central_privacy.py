"""The noise that is added, what one client can move, and whom a round draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from federated.aggregation import ClipNorm, Reduction, mean_of
from federated.population import Population
from federated.privacy.central import Central, noisy_mean
from federated.updates import Scaling, Stack
from heliotrope.data import Partition
from heliotrope.errors import ConfigError
from heliotrope.seeding import numpy_generator

_START = {
    "w": torch.randn(3, 50, generator=torch.Generator().manual_seed(0)),
    "b": torch.zeros(7),
    "counter": torch.zeros((), dtype=torch.int64),
}


def _stack(clients: list[int], arrays: dict[str, torch.Tensor], clip: float, weight: int) -> Stack:
    trained = {name: value for name, value in arrays.items() if name != "counter"}
    factors = ClipNorm(clip).factors(trained, _START)
    each = (1,) * len(clients)
    return Stack(
        clients=tuple(clients),
        arrays=arrays,
        weights=(weight,) * len(clients),
        loss_sums=(0.0,) * len(clients),
        seen=each,
        weights_seen=each,
        steps=each,
        scaling=Scaling(factors, frozenset(trained), clip),
    )


def _arrays(scales: list[float]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(scales))
    column = torch.tensor(scales)
    return {
        "w": _START["w"]
        + column[:, None, None] * torch.randn(len(scales), 3, 50, generator=generator),
        "b": _START["b"] + column[:, None] * torch.randn(len(scales), 7, generator=generator),
        "counter": torch.ones(len(scales), dtype=torch.int64),
    }


def _total(stacks: list[Stack]) -> dict[str, torch.Tensor]:
    parts = []
    for stack in stacks:
        reduction = Reduction(_START, 1000)
        assert reduction.add(stack) == []
        parts.append(reduction.partial())
    mean = mean_of([part for part in parts if part is not None], _START)
    return {name: value * mean.weight for name, value in mean.differences.items()}


def _length(values: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(values[name].square().sum()) for name in ("w", "b")))


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6, 1e30])
def test_no_client_moves_the_sum_by_more_than_the_clip(scale: float) -> None:
    others = _stack([0, 1], _arrays([0.01, 3.0]), 0.5, 1)
    mine = _stack([2], {n: v[:1] for n, v in _arrays([scale]).items()}, 0.5, 1)
    without, together = _total([others]), _total([others, mine])
    moved = {name: together[name] - without[name] for name in ("w", "b")}
    assert _length(moved) <= 0.5 * (1 + 1e-12)
    if scale >= 1:
        assert _length(moved) == pytest.approx(0.5, rel=1e-9)


def test_a_sum_of_clipped_updates_is_that_of_float64_in_any_grouping() -> None:
    arrays = _arrays([0.01, 0.2, 5.0, 70.0])
    parts = [_stack([k], {n: v[k : k + 1] for n, v in arrays.items()}, 0.7, 3) for k in range(4)]
    together, apart = _total([_stack([0, 1, 2, 3], arrays, 0.7, 3)]), _total(parts)
    for name in ("w", "b"):
        assert torch.equal(together[name], apart[name])
    ways = {name: arrays[name].double() - _START[name] for name in ("w", "b")}
    by_hand = {name: torch.zeros_like(way[0]) for name, way in ways.items()}
    for k in range(4):
        norm = _length({name: way[k] for name, way in ways.items()})
        for name, way in ways.items():
            by_hand[name] += 3 * way[k] * min(1.0, 0.7 / norm)
    for name, value in by_hand.items():
        torch.testing.assert_close(together[name], value, rtol=1e-12, atol=1e-12)


def test_an_update_that_is_not_finite_is_left_out() -> None:
    arrays = _arrays([0.1, 0.1, 0.1])
    arrays["w"][1, 0, 0] = math.nan
    arrays["b"][2, 0] = math.inf
    reduction = Reduction(_START, 1000)
    failures = reduction.add(_stack([4, 5, 6], arrays, 1.0, 1))
    assert [failure.client for failure in failures] == [5, 6]
    partial = reduction.partial()
    assert partial is not None
    assert partial.clients == (4,)


def test_single_numbers_and_none_at_all_are_clipped_with_the_rest() -> None:
    starts = {"scale": torch.tensor(1.0), "none": torch.zeros(0, 3)}
    arrays = {"scale": torch.tensor([4.0, 1.1, math.nan]), "none": torch.zeros(3, 0, 3)}
    factors = ClipNorm(0.5).factors(arrays, starts)
    assert factors[:2].tolist() == pytest.approx([0.5 / 3, 1.0])
    each = (1,) * 3
    scaling = Scaling(factors, frozenset(arrays), 0.5)
    stack = Stack((4, 5, 6), arrays, each, (0.0,) * 3, each, each, each, scaling=scaling)
    reduction = Reduction(starts, 1000)
    assert [failure.client for failure in reduction.add(stack)] == [6]
    partial = reduction.partial()
    assert partial is not None
    assert float(mean_of([partial], starts).differences["scale"]) == pytest.approx(0.3)


def test_where_no_update_is_finite_all_are_left_out() -> None:
    arrays = {n: v[:1] for n, v in _arrays([0.1]).items()}
    arrays["w"][0, 0, 0] = math.nan
    reduction = Reduction(_START, 1000)
    assert [f.kind for f in reduction.add(_stack([4], arrays, 1.0, 1))] == ["diverged"]
    assert reduction.partial() is None


def test_one_client_alone_needs_a_delta_below_1() -> None:
    with pytest.raises(ConfigError, match="delta=1 promises nothing"):
        Central(1.0, 1.0, 1.0, None, "poisson").delta_for(1)


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_delta_has_no_default_for_so_few_that_it_would_be_large(count: int) -> None:
    named = rf"federated.privacy.delta=null has no default for {count} of the clients"
    with pytest.raises(ConfigError, match=named):
        Central(1.0, 1.0, None, None, "poisson").delta_for(count)
    assert Central(1.0, 1.0, 1e-5, None, "poisson").delta_for(count) == 1e-5
    with pytest.raises(ConfigError, match=r"Set federated.privacy.delta, such as 1e-5\.$"):
        Central(1.0, 1.0, 2.0, None, "poisson").delta_for(count)


def test_the_noise_has_the_deviation_that_is_accounted_for() -> None:
    total = {"w": torch.full((200, 300), 5.0, dtype=torch.float64), "mean": torch.ones(3).double()}
    found = noisy_mean(total, {"w"}, 2.5, 10, numpy_generator(1, "test"))
    noise = found["w"] * 10 - 5.0
    # Of 60,000 draws: the mean within 5 of its deviations, the variance too.
    assert abs(float(noise.mean())) < 5 * 2.5 / math.sqrt(60000)
    assert float(noise.var()) == pytest.approx(2.5**2, rel=5 * math.sqrt(2 / 60000))
    beyond = float((noise.abs() > 2.5).double().mean())
    assert beyond == pytest.approx(0.31731, abs=0.01)
    assert torch.equal(found["mean"], torch.zeros(3).double())  # a buffer is not released
    again = noisy_mean(total, {"w"}, 2.5, 10, numpy_generator(1, "test"))
    assert torch.equal(found["w"], again["w"])


@pytest.mark.parametrize(("sampling", "reach"), [("poisson", 0.5), ("fixed", 1.0)])
def test_the_noise_is_in_units_of_the_sensitivity(sampling: str, reach: float) -> None:
    privacy = Central(0.5, 1.5, 1e-3, None, sampling)
    mechanism = privacy.mechanism(10, 100, 5, None)
    assert privacy.deviation(mechanism) == 1.5 * reach


def test_each_client_is_drawn_with_the_same_probability_by_itself() -> None:
    sizes = np.arange(0, 401)
    population = Population(Partition(np.arange(400), sizes), 0.0, 3)
    cohorts = [population.draw_each(server_round, 40) for server_round in range(1, 401)]
    lengths = np.array([len(cohort) for cohort in cohorts])
    drawn = np.bincount(np.concatenate(cohorts), minlength=400)
    # Binomial(400, 0.1): over 400 rounds, the mean within 5 deviations of the mean, and its spread.
    assert abs(lengths.mean() - 40) < 5 * 6 / 20
    assert lengths.std() == pytest.approx(6, rel=0.2)
    assert abs(drawn - 40).max() < 5 * 6
    assert population.draw_each(7, 400) == list(range(400))
    assert population.draw_each(1, 40) == population.draw_each(1, 40)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ((0.0, 1.0, None, None, "poisson"), "clip=0"),
        ((1.0, -1.0, None, None, "poisson"), "noise_multiplier=-1"),
        ((1.0, 0.0, None, None, "poisson"), "noise_multiplier=0"),
        ((1.0, 1e-200, None, None, "poisson"), "noise_multiplier=1e-200"),
        ((1.0, 1e200, None, None, "fixed"), r"noise_multiplier=1e\+200"),
        ((math.nan, 1.0, None, None, "poisson"), "clip=nan"),
        ((math.inf, 1.0, None, None, "poisson"), "clip=inf"),
        ((1.0, math.nan, None, None, "poisson"), "noise_multiplier=nan"),
        ((1.0, 1.0, None, math.nan, "poisson"), "target_epsilon=nan"),
        ((1.0, None, None, None, "poisson"), "noise_multiplier is not set"),
        ((1.0, None, None, 0.0, "poisson"), "target_epsilon=0"),
        ((1.0, 1.0, None, None, "shuffled"), "sampling=shuffled"),
    ],
)
def test_keys_that_promise_nothing_are_refused(keys: tuple[object, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=f"federated.privacy.{named}"):
        Central(*keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("delta", [0.0, -1e-3, 0.02, 1.0])
def test_a_delta_above_one_in_the_number_of_clients_is_refused(delta: float) -> None:
    privacy = Central(1.0, 1.0, delta, None, "poisson")
    with pytest.raises(ConfigError, match=rf"federated.privacy.delta={delta:g}.*1/100"):
        privacy.delta_for(100)
    assert Central(1.0, 1.0, None, None, "poisson").delta_for(100) == pytest.approx(100**-1.1)
