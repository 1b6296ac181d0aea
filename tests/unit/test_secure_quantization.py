"""Whole numbers from weights: bounds that are refused, sums that do not wrap around."""

from __future__ import annotations

import math
import secrets
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from federated.aggregation.masked import Layout, MaskedReduction
from federated.secure_aggregation.client import Masks
from federated.secure_aggregation.masking import Masking
from federated.secure_aggregation.messages import Setup, Vector
from federated.secure_aggregation.quantization import BoundError, Quantizer
from federated.secure_aggregation.settings import SecAgg
from federated.secure_rounds import SecureRounds
from federated.secure_setting import SecureSetting
from federated.updates import Scaling, Stack
from heliotrope.errors import ConfigError

_START = {
    "w": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "b": torch.zeros(1),
    "counter": torch.tensor(3),
}


def _stack(weights: tuple[int, ...], scale: float = 0.1) -> Stack:
    seed = secrets.randbits(32)
    print("seed of the stack", seed)
    generator, count = torch.Generator().manual_seed(seed), len(weights)
    return Stack(
        clients=tuple(range(count)),
        arrays={
            "w": _START["w"] + scale * torch.randn(count, 3, 5, generator=generator),
            "b": scale * torch.randn(count, 1, generator=generator),
            "counter": torch.full((count,), 8),
        },
        weights=weights,
        loss_sums=tuple(1.5 * n for n in weights),
        seen=tuple(2 * n for n in weights),
        weights_seen=tuple(3 * n for n in weights),
        steps=(4,) * count,
        numbers={"change": tuple(float(n) for n in range(count))},
    )


def _sum(stack: Stack, quantizer: Quantizer) -> tuple[Vector, MaskedReduction]:
    """Add what clients would send, under no masks."""
    layout = Layout(_START, ("change",))
    none = {client: Masks(client, ()) for client in stack.clients}
    reduction = MaskedReduction(layout, Masking(quantizer, none))
    assert reduction.add(stack) == []
    setup = Setup(b"", 2, 1, quantizer.bits, layout.size, layout.numbers)
    total = Vector.zeros(setup)
    for message in reduction.inputs:
        total.add(message.vector)
    return total, reduction


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("toward_zero", [False, True])
@pytest.mark.parametrize("weights", [(1, 1), (3, 40, 7), (100, 0, 1, 900)])
def test_the_mean_is_off_by_no_more_than_is_told(
    weights: tuple[int, ...], toward_zero: bool, bits: int
) -> None:
    stack, total_weight = _stack(weights), sum(weights)
    quantizer = Quantizer(2.0, bits, len(weights), max(weights), total_weight, toward_zero)
    total, _ = _sum(stack, quantizer)
    mean, told = Layout(_START, ("change",)).mean(total, stack.clients, quantizer)
    assert mean.weight == total_weight
    for name in ("w", "b"):
        column = torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * _START[name].dim())
        wanted = ((stack.arrays[name].double() - _START[name]) * column).sum(0) / total_weight
        off = float((mean.differences[name] - wanted).abs().max())
        assert off <= quantizer.error / total_weight * (1 + 1e-9) + 1e-12
    assert mean.differences["counter"].item() == 5
    seen = (told.weight, told.seen, told.weight_seen)
    assert seen == (total_weight, 2 * total_weight, 3 * total_weight)
    assert told.steps == 4 * len(weights)
    assert told.loss_sum == 1.5 * total_weight
    change = sum(n * weight for n, weight in enumerate(weights)) / total_weight
    assert told.numbers["change"] == pytest.approx(change, abs=1e-6)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sum_that_can_be_does_not_wrap_around(bits: int, sign: int) -> None:
    for clients, weight, limit in ((2, 1, 1.0), (100, 1, 0.3), (7, 13, 4.0), (1000, 60, 1e-3)):
        quantizer = Quantizer(limit, bits, clients, weight, clients * weight)
        assert math.log2(quantizer.step).is_integer()
        one = quantizer.values(np.array([sign * limit]), weight)
        total = np.zeros(1, one.dtype)
        for _ in range(clients):
            total += one
        found = float(quantizer.sums(total)[0])
        assert found == pytest.approx(sign * limit * clients * weight, abs=quantizer.error * 1.01)


def test_the_step_is_the_finest_that_the_bits_allow() -> None:
    for limit in (1.0, 0.7, 4.0):
        quantizer = Quantizer(limit, 32, 10, 50, 400)
        assert 2**29 < limit * 400 / quantizer.step <= 2**31 - 6


@pytest.mark.parametrize(
    ("differences", "weight", "named"),
    [
        ([0.5, 1.01], 1, "it went 1.01, beyond federated.secure_aggregation.range=1,"),
        ([-1.01, 0.5], 1, "it went 1.01"),
        ([float("nan"), 0.0], 1, "it went nan"),
        ([0.0, float("-inf")], 1, "it went inf"),
        ([0.0], 51, "it weighs 51, where 50 is the most"),
        ([0.0], -1, "it weighs -1"),
    ],
)
def test_what_is_beyond_the_bounds_is_refused_and_not_cut_off(
    differences: list[float], weight: int, named: str
) -> None:
    quantizer = Quantizer(1.0, 32, 10, 50, 400)
    with pytest.raises(BoundError, match=named):
        quantizer.values(np.array(differences), weight)


def test_numbers_that_could_wrap_around_or_are_none_are_refused() -> None:
    quantizer = Quantizer(1.0, 32, 1000, 1, 1000)
    most = (2**63 - 1) // 1000
    assert quantizer.whole_sum(1000 * quantizer.whole_number(-most) % 2**64) == -1000 * most
    for wrong in (most + 1, -most - 1):
        with pytest.raises(BoundError, match="is the most"):
            quantizer.whole_number(wrong)
    for number in (float("nan"), float("inf")):
        with pytest.raises(BoundError, match="a number that is"):
            quantizer.number(number)
    with pytest.raises(BoundError, match="is the most"):
        quantizer.number(1e15)


def test_clients_that_are_beyond_the_bounds_are_named_and_the_others_go_on() -> None:
    stack = _stack((1, 1, 1, 1, 1))
    stack.arrays["w"][1, 0, 0] += 9
    stack.arrays["b"][2, 0] = float("nan")
    stack = replace(stack, numbers={"change": (0.0, 0.0, 0.0, float("nan"), 0.0)})
    quantizer = Quantizer(1.0, 32, 5, 1, 5)
    none = {client: Masks(client, ()) for client in stack.clients}
    reduction = MaskedReduction(Layout(_START, ("change",)), Masking(quantizer, none))
    failures = {failure.client: failure for failure in reduction.add(stack)}
    assert sorted(failures) == [1, 2, 3]
    assert "w: it went" in failures[1].reason
    assert "range=1, which may be raised" in failures[1].reason
    assert "b holds NaN" in failures[2].reason
    assert "a number that is nan" in failures[3].reason
    assert [message.client for message in reduction.inputs] == [0, 4]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e13, -7.25])
def test_a_loss_leaves_no_client_out_and_what_cannot_be_told_is_the_nearest_that_can(
    loss: float,
) -> None:
    stack, quantizer = _stack((2, 1, 3)), Quantizer(4.0, 32, 3, 3, 6)
    plain, _ = _sum(stack, quantizer)
    odd, reduction = _sum(replace(stack, loss_sums=(loss, 0.5, 0.25)), quantizer)
    assert np.array_equal(odd.values, plain.values)
    _, told = reduction._layout.mean(odd, stack.clients, quantizer)
    most = (2**63 - 1) / 3 * 2.0**-24
    nearest = most if math.isnan(loss) else min(max(loss, -most), most)
    assert told.loss_sum == pytest.approx(nearest + 0.75)
    assert (told.weight, told.seen, told.steps) == (6, 12, 12)


def test_clipped_updates_are_no_longer_than_their_clip_where_they_are_rounded_toward_zero() -> None:
    stack = _stack((1,) * 8, scale=3.0)
    way = torch.cat([(stack.arrays[n].double() - _START[n]).flatten(1) for n in ("w", "b")], 1)
    factors = (0.5 / way.norm(dim=1)).clamp(max=1)
    stack = replace(stack, scaling=Scaling(factors, frozenset({"w", "b"}), 0.5))
    coarse = Quantizer(0.5 * (1 + 2**-20), 16, 8, 1, 8, toward_zero=True)
    longest = {}
    for toward_zero in (True, False):
        quantizer = replace(coarse, toward_zero=toward_zero)
        _, reduction = _sum(stack, quantizer)
        sent = [quantizer.sums(message.vector.values) for message in reduction.inputs]
        longest[toward_zero] = max(float(np.linalg.norm(each)) for each in sent)
    assert longest[True] <= 0.5 < longest[False]


def test_an_update_of_nothing_is_nothing() -> None:
    stack = _stack((5, 5), scale=0.0)
    total, _ = _sum(stack, Quantizer(1.0, 32, 2, 5, 10))
    assert not total.values.any()


def test_the_sum_of_no_weight_is_refused_by_name() -> None:
    quantizer = Quantizer(1.0, 32, 2, 5, 10)
    total, _ = _sum(_stack((0, 0)), quantizer)
    with pytest.raises(Exception, match="num-examples=0"):
        Layout(_START, ("change",)).mean(total, (0, 1), quantizer)


@pytest.mark.parametrize(
    ("keys", "cohort", "named"),
    [
        ((11, None, 32, None), 10, "threshold=11 is more than federated.clients_per_round=10"),
        ((5, None, 32, None), 10, "threshold=5 is no more than half.*threshold=6 or more"),
        ((None, None, 32, None), 1, "the sum of one client is its update"),
    ],
)
def test_thresholds_that_are_not_safe_are_refused(
    keys: tuple[int | None, int | None, int, float | None], cohort: int, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        SecAgg(*keys).threshold_of(cohort)


def test_a_threshold_is_more_than_two_thirds_unless_it_is_said_and_grows_with_the_cohort() -> None:
    chosen = SecAgg(None, None, 32, None)
    assert [chosen.threshold_of(n) for n in (2, 3, 4, 10, 100)] == [2, 3, 3, 7, 67]
    setup = SecAgg(6, None, 32, None).setup(10, 15, 1, 1)
    assert (setup.threshold, setup.neighbours) == (9, 14)


def test_too_few_bits_for_range_and_cohort_are_refused_with_enough_of_them() -> None:
    coarse, fine = (Quantizer(4.0, bits, 10_000, 1, 10_000) for bits in (16, 32))
    with pytest.raises(ConfigError, match=r"bits=16 is too few for sums of up to 10,000.*bits=32"):
        SecAgg(None, None, 16, None).check_precision(coarse)
    SecAgg(None, None, 32, None).check_precision(fine)
    with pytest.raises(ConfigError, match="bits=16"):  # the sum of the clients alone would wrap
        SecAgg(None, None, 16, None).check_precision(Quantizer(4.0, 16, 10**6, 1, 10**6))


def test_the_step_is_told_before_training() -> None:
    quantizer = Quantizer(1e30, 32, 10, 100, 1000)
    rounds = cast("SecureRounds", SimpleNamespace(expected_quantizer=quantizer))
    said = SecureSetting(SecAgg(None, None, 32, 1e30), rounds, 10).line()
    assert f"within 1e+30, examples times update in steps of {quantizer.step:.4g}" in said
