"""The reduction against exact fractions, and against itself in other groupings."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from federated.aggregation import Reduction, mean_of
from federated.updates import Stack
from heliotrope.errors import RunFailedError
from tests.support import fresh_seed

_Update = tuple[int, dict[str, Tensor]]  # examples, arrays


def _stack(chosen: Sequence[int], updates: Sequence[_Update]) -> Stack:
    names = updates[0][1]
    return Stack(
        clients=tuple(chosen),
        arrays={name: torch.stack([updates[c][1][name] for c in chosen]) for name in names},
        weights=tuple(updates[client][0] for client in chosen),
        loss_sums=tuple(0.1 * client for client in chosen),
        seen=tuple(1 for _ in chosen),
        weights_seen=tuple(1 for _ in chosen),
        steps=tuple(1 for _ in chosen),
    )


def _mean(
    start: Mapping[str, Tensor],
    updates: Sequence[_Update],
    most: int,
    workers: int = 1,
    size: int = 64,
    order: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """The float64 mean differences, with the clients in stacks of `size`, dealt to workers."""
    clients = list(order or range(len(updates)))
    partials = []
    for worker in range(workers):
        own = clients[worker::workers]
        reduction = Reduction(start, most)
        for first in range(0, len(own), size):
            assert reduction.add(_stack(own[first : first + size], updates)) == []
        part = reduction.partial()
        if part is not None:
            partials.append(part)
    return dict(mean_of(partials, start).differences)


def _exactly(start: Tensor, name: str, updates: Sequence[_Update]) -> list[Fraction]:
    total = sum(examples for examples, _ in updates)
    sums = [Fraction(0)] * start.numel()
    for examples, arrays in updates:
        for at, value in enumerate(arrays[name].reshape(-1).tolist()):
            sums[at] += examples * Fraction(value)
    return [s / total - Fraction(w) for s, w in zip(sums, start.reshape(-1).tolist(), strict=True)]


def _assert_exact(
    start: Mapping[str, Tensor],
    updates: Sequence[_Update],
    most: int,
    tolerance: float = 4e-16,
    least: float = 0.0,
) -> None:
    found = _mean(start, updates, most)
    for name, value in start.items():
        exact = _exactly(value, name, updates)
        for ours, theirs in zip(found[name].reshape(-1).tolist(), exact, strict=True):
            allowed = max(least, tolerance * abs(theirs))
            assert abs(Fraction(ours) - theirs) <= allowed, (name, ours, theirs)


def test_1200_clients_with_tiny_steps_are_averaged_to_float64() -> None:
    """In float32 sums of weights such steps were 3 to 74 % off."""
    generator = torch.Generator().manual_seed(fresh_seed())
    start = {"w": torch.randn(40, generator=generator), "zero": torch.zeros(5)}
    updates = []
    for client in range(1200):
        step = {n: 3e-7 * torch.randn(w.shape, generator=generator) for n, w in start.items()}
        updates.append((1 + client % 7, {n: w + step[n] for n, w in start.items()}))
    # A mean of random steps may be close to 0; of a number up to 1, 2^-65 is rounded away.
    _assert_exact(start, updates, most=60_000, tolerance=1e-14, least=2.0**-65)


def test_10000_clients_and_millions_of_examples() -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    start = {"w": torch.randn(6, generator=generator)}
    updates = [
        (600, {"w": start["w"] + 1e-3 * torch.randn(6, generator=generator)}) for _ in range(10_000)
    ]
    _assert_exact(start, updates, most=6_000_000)


def test_clients_and_weights_of_very_different_size() -> None:
    start = {"w": torch.tensor([1e6, 1.0, 1e-6, 0.0, -3e-9])}
    updates = [
        (1_000_000, {"w": torch.tensor([1.001e6, 1.0000001, 1.1e-6, 1e-7, -3.1e-9])}),
        (1, {"w": torch.tensor([1.5e6, -2.0, 5e-6, 3e-7, 2e-9])}),
        (37, {"w": torch.tensor([-1e6, 1.5, 0.0, -1e-12, 1.0])}),
    ]
    _assert_exact(start, updates, most=2_000_000)


def test_weights_that_grow_beyond_what_can_be_cut_are_still_averaged() -> None:
    start = {"w": torch.tensor([0.5, 0.25]), "v": torch.tensor([0.5])}
    updates = [
        (3, {"w": torch.tensor([1e30, 0.5]), "v": torch.tensor([0.75])}),
        (4, {"w": torch.tensor([0.75, -1e6]), "v": torch.tensor([0.25])}),
        (5, {"w": torch.tensor([0.5, 0.125]), "v": torch.tensor([1.0])}),
    ]
    _assert_exact(start, updates, most=12, tolerance=1e-15)
    orders = ([0, 1, 2], [2, 1, 0], [1, 2, 0])
    means = [_mean(start, updates, 12, workers, 1, o) for o in orders for workers in (1, 2, 3)]
    assert all(torch.equal(mean[name], means[0][name]) for mean in means for name in start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_any_grouping_gives_the_same_bits(dtype: torch.dtype) -> None:
    seed = fresh_seed()
    generator, draw = torch.Generator().manual_seed(seed), random.Random(seed)
    start = {"w": torch.randn(7, 30, generator=generator).to(dtype), "b": torch.zeros(9).to(dtype)}
    updates = []
    for _ in range(150):
        scale = 10 ** draw.uniform(-9, 0.3)
        step = {n: scale * torch.randn(w.shape, generator=generator) for n, w in start.items()}
        moved = {n: (w + step[n].to(dtype)).to(dtype) for n, w in start.items()}
        updates.append((draw.randint(1, 5000), moved))
    expected = _mean(start, updates, 750_000)
    for workers, size in ((1, 1), (2, 7), (3, 64), (5, 2)):
        order = draw.sample(range(150), 150)
        found = _mean(start, updates, 750_000, workers, size, order)
        assert all(torch.equal(found[name], expected[name]) for name in start)


def test_a_block_of_the_cache_does_not_divide_the_tensor() -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    start = {"w": torch.randn(70_001, generator=generator)}
    updates = [
        (examples, {"w": start["w"] + 0.01 * torch.randn(70_001, generator=generator)})
        for examples in (3, 5)
    ]
    expected = sum(n * (arrays["w"].double() - start["w"].double()) for n, arrays in updates) / 8
    torch.testing.assert_close(_mean(start, updates, 8)["w"], expected, rtol=1e-12, atol=0)


def test_counters_are_averaged_as_whole_numbers_and_rounded() -> None:
    start = {
        "count": torch.tensor(2**60),
        "seen": torch.tensor([True, False]),
        "small": torch.tensor([7], dtype=torch.uint8),
    }
    updates = [
        (1, {"count": torch.tensor(2**60 + 3), "seen": torch.tensor([True, True])}),
        (2, {"count": torch.tensor(2**60 + 4), "seen": torch.tensor([False, False])}),
    ]
    for (_, arrays), value in zip(updates, (9, 4), strict=True):
        arrays["small"] = torch.tensor([value], dtype=torch.uint8)
    reduction = Reduction(start, 3)
    assert reduction.add(_stack([0, 1], updates)) == []
    part = reduction.partial()
    assert part is not None
    new = mean_of([part], start).weights(start)
    assert new["count"].item() == 2**60 + 4  # 3.67 more
    assert new["seen"].tolist() == [False, False]
    assert new["small"].tolist() == [6]  # 5.67
    assert {name: value.dtype for name, value in new.items()} == {
        name: value.dtype for name, value in start.items()
    }


def test_who_is_not_finite_or_has_another_shape_is_named_and_left_out() -> None:
    start = {"w": torch.zeros(2)}
    rows = torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [3.0, -torch.inf], [5.0, 6.0]])
    reduction = Reduction(start, 100)
    stack = Stack((4, 5, 6, 7), {"w": rows}, (1, 1, 1, 3), (0.0,) * 4, *[(1,) * 4] * 3)
    failures = reduction.add(stack)
    assert sorted(failure.client for failure in failures) == [5, 6]
    (short,) = reduction.add(Stack((8,), {"w": torch.ones(1, 1)}, (1,), (0.0,), (1,), (1,), (1,)))
    assert "shape" in short.reason
    part = reduction.partial()
    assert part is not None
    assert (part.clients, part.weight) == ((4, 7), 4)
    assert mean_of([part], start).differences["w"].tolist() == [4.0, 5.0]


def test_clients_without_any_examples_have_no_mean() -> None:
    start = {"w": torch.ones(2), "counter": torch.tensor(3)}
    update = {"w": torch.tensor([2.0, 3.0]), "counter": torch.tensor(5)}
    with pytest.raises(RunFailedError, match="num-examples=0"):
        _mean(start, [(0, update), (0, update)], 10)
    some = _mean(start, [(0, update), (4, update)], 10)
    assert some["w"].tolist() == [1.0, 2.0]
    assert some["counter"].tolist() == 2.0
