"""A batch of one example is refused before any work if the model, as with BatchNorm, needs two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distributed.loop.passes import check_passes
from federated.engine.alone import check_batches
from federated.engine.context import assemble
from heliotrope.data import Partition
from heliotrope.errors import ConfigError
from heliotrope.models.usable import why_not_one
from tests.support import compose, global_random_state_untouched, random_split, small_task

TASK = small_task(3, (4,))


def _normalised(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 3))


BATCH = _normalised(nn.BatchNorm1d(8))
GROUP = _normalised(nn.GroupNorm(2, 8))


def test_what_needs_two_examples_is_found_by_trying() -> None:
    before = {name: value.clone() for name, value in BATCH.state_dict().items()}
    with global_random_state_untouched():
        assert "ValueError: Expected more than 1 value per channel" in str(why_not_one(BATCH, TASK))
    assert all(torch.equal(value, before[name]) for name, value in BATCH.state_dict().items())
    assert why_not_one(GROUP, TASK) is None
    assert why_not_one(_normalised(nn.BatchNorm1d(8, track_running_stats=False)), TASK)
    assert why_not_one(nn.Linear(5, 3), TASK) is None  # two do not help either


@pytest.mark.parametrize(
    ("examples", "settings", "remedy"),
    [
        (65, ("batch_size=32",), "of 65 training examples leaves .* distributed.batch_size=33"),
        (64, ("batch_size=1",), "Set distributed.batch_size=2"),
        (67, ("batch_size=32", "workers=2"), "by distributed.workers=2, .*batch_size=31"),
        (35, ("batch_size=32", "workers=[1,2]", "launcher=ray"), "distributed.batch_size=31"),
        (
            66,
            ("batch_size=32", "accumulation_steps=2"),
            "by distributed.accumulation_steps=2, .*batch_size=33",
        ),
        (1, ("batch_size=32",), "Take other data"),
    ],
)
def test_a_part_of_one_is_refused_with_a_batch_size_that_leaves_none(
    examples: int, settings: tuple[str, ...], remedy: str
) -> None:
    given = [f"distributed.{setting}" for setting in settings]
    alone = () if any("workers" in each for each in given) else ("distributed.workers=1",)
    run = compose("distributed", *alone, *given)
    with pytest.raises(ConfigError, match=f"model=mlp cannot be trained on one .*{remedy}"):
        check_passes(run, BATCH, TASK, examples)
    check_passes(run, GROUP, TASK, examples)


def _check(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, sizes: list[int], *settings: str
) -> None:
    monkeypatch.setattr("federated.engine.context.build", lambda *_: model)
    few = (f"federated.partition.clients={len(sizes)}", "federated.clients_per_round=2")
    run = compose("federated", *few, *settings)
    train = random_split(sum(sizes), TASK, torch.Generator().manual_seed(0))
    parts = Partition(np.arange(sum(sizes)), np.cumsum([0, *sizes]))
    check_batches(assemble(run, TASK, train, parts), "mine")


@pytest.mark.parametrize(
    ("sizes", "settings", "said"),
    [
        (
            [20, 21, 31],
            (),
            "client 1, of 21 .*, and so have 1 others. Set federated.batch_size=11,",
        ),
        ([20, 21, 31], ("federated.batch_size=1",), "client 0, .* Set federated.batch_size=7"),
        ([20, 1], (), "1 client.s. have one .*: raise federated.partition.min_size=1"),
        (
            [20, 1],
            ("federated.batch_size=null", "federated/partition=iid"),
            "batch_size=null client 1, .* fewer clients, .* lower federated.quorum=1",
        ),
        ([3, 3], ("federated.batch_size=2",), "Set federated.batch_size=null"),
        ([21, 31], ("federated.quorum=0.5",), "client 0"),
    ],
)
def test_a_client_with_a_batch_of_one_is_refused_with_what_to_set(
    sizes: list[int], settings: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"model=mine cannot be trained on one .*{said}"):
        _check(monkeypatch, BATCH, sizes, *settings)
    _check(monkeypatch, GROUP, sizes, *settings)


def test_clients_without_such_a_batch_and_those_a_quorum_spares_are_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _check(monkeypatch, BATCH, [20, 22, 8])
    _check(monkeypatch, BATCH, [20, 21], "federated.quorum=0.5")
