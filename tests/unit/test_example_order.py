"""The order of the training examples: independent of the world size, every example once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch

from distributed.loop.example_order import batches, permutation, rank_slice
from distributed.loop.mixup import Mixup
from distributed.topology import Topology
from heliotrope.data import Examples
from heliotrope.training.loop import TrainingBatch
from tests.support import fresh_seed, labelled


def _numbered(examples: int) -> Examples:
    numbers = torch.arange(examples)
    return labelled(numbers.float().unsqueeze(1), numbers)


def _joined(parts: Sequence[TrainingBatch], name: str) -> list[float]:
    return [value for part in parts for value in part.fields[name].flatten().tolist()]


def _epoch(
    examples: int, size: int, world: int, run_seed: int, epoch: int, mixup: float = 0.0
) -> list[list[TrainingBatch]]:
    """The batches of each rank."""
    train, order = _numbered(examples), permutation(run_seed, epoch, examples)
    weights = torch.ones(examples, dtype=torch.int64)
    change = Mixup(train, ("image",), mixup, run_seed) if mixup else None
    return [
        list(
            batches(train, weights, order, size, Topology(rank, world), run_seed, 0, change=change)
        )
        for rank in range(world)
    ]


def test_all_ranks_together_see_what_one_worker_sees() -> None:
    draw = random.Random(fresh_seed())
    for _ in range(20):
        examples, size = draw.randint(1, 60), draw.randint(1, 20)
        world, run_seed, epoch = draw.randint(1, 5), draw.randint(0, 99), draw.randint(1, 9)
        [alone] = _epoch(examples, size, 1, run_seed, epoch)
        ranks = _epoch(examples, size, world, run_seed, epoch)

        for step, whole in enumerate(alone):
            parts = [batches[step] for batches in ranks]
            assert torch.equal(
                torch.cat([part.fields["label"] for part in parts]), whole.fields["label"]
            )
            assert torch.equal(
                torch.cat([part.fields["image"] for part in parts]), whole.fields["image"]
            )
            assert {part.divisor for part in parts} == {len(whole) / world}
            assert [part.seed for part in parts] == [whole.seed] * world
            assert [part.first for part in parts] == [
                sum(len(other) for other in parts[:rank]) for rank in range(world)
            ]
        seen = torch.cat([batch.fields["label"] for batch in alone])
        assert sorted(seen.tolist()) == list(range(examples))


def test_an_epoch_goes_on_from_any_step_with_any_number_of_ranks() -> None:
    draw = random.Random(fresh_seed())
    for _ in range(20):
        examples, size = draw.randint(1, 60), draw.randint(1, 20)
        train, order = _numbered(examples), permutation(1, 2, examples)
        weights = torch.ones(examples, dtype=torch.int64)
        done = draw.randint(0, -(-examples // size))
        seen = []
        for world, first, last in ((draw.randint(1, 4), 0, done), (draw.randint(1, 4), done, None)):
            for rank in range(world):
                rest = batches(
                    train, weights, order, size, Topology(rank, world), 1, 0, first=first
                )
                seen += [batch.fields["label"] for batch in itertools.islice(rest, last)]
        assert sorted(torch.cat(seen).tolist()) == list(range(examples))

        whole = list(batches(train, weights, order, size, Topology(), 1, 7))[done:]
        rest = list(batches(train, weights, order, size, Topology(), 1, 7, first=done))
        assert [batch.seed for batch in rest] == [batch.seed for batch in whole]
        assert [batch.fields["label"].tolist() for batch in rest] == [
            b.fields["label"].tolist() for b in whole
        ]


def test_mixup_blends_the_same_examples_on_any_number_of_workers() -> None:
    run_seed = fresh_seed()
    [alone] = _epoch(53, 8, 1, run_seed, epoch=2, mixup=0.7)
    ranks = _epoch(53, 8, 3, run_seed, epoch=2, mixup=0.7)
    for step, whole in enumerate(alone):
        # The input of example n is n, and so is its label: the blend shows its ingredients.
        assert whole.others is not None
        expected = whole.share * whole.fields["label"] + (1 - whole.share) * whole.others["label"]
        torch.testing.assert_close(whole.fields["image"].squeeze(1), expected)
        assert sorted(whole.others["label"].tolist()) == sorted(whole.fields["label"].tolist())
        parts = [batches[step] for batches in ranks]
        assert {part.share for part in parts} == {whole.share}
        assert torch.equal(
            torch.cat([part.fields["image"] for part in parts]), whole.fields["image"]
        )
        others = [part.others["label"] for part in parts if part.others is not None]
        assert torch.equal(torch.cat(others), whole.others["label"])
    assert len({whole.share for whole in alone}) == len(alone)


def test_the_last_batch_is_smaller_and_may_leave_a_rank_without_examples() -> None:
    ranks = _epoch(examples=9, size=4, world=2, run_seed=0, epoch=1)
    assert [[len(batch) for batch in rank] for rank in ranks] == [[2, 2, 0], [2, 2, 1]]


def test_epochs_and_runs_have_orders_of_their_own() -> None:
    orders = {
        tuple(permutation(run_seed, epoch, 50).tolist()) for run_seed in (1, 2) for epoch in (1, 2)
    }
    assert len(orders) == 4
    assert torch.equal(permutation(7, 3, 50), permutation(7, 3, 50))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_parts_are_disjoint_whole_and_even(world: int) -> None:
    for count in range(30):
        parts = [rank_slice(count, Topology(rank, world)) for rank in range(world)]
        covered = [number for part in parts for number in range(count)[part]]
        assert covered == list(range(count))
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1
