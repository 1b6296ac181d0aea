"""Canaries are drawn from the run's seed before training, and only those of a fair coin train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distributed.driver import build_components
from distributed.loop.epoch_batches import EpochBatches
from distributed.topology import Topology
from heliotrope.data import load
from heliotrope.data.canaries import with_canaries
from heliotrope.errors import ConfigError
from heliotrope.privacy.canaries import Canaries
from heliotrope.tasks import example_weights
from tests.support import compose, everything


def test_coins_are_fair_follow_from_the_seed_and_are_kept(tmp_path: Path) -> None:
    coins = [Canaries.drawn("record", 1000, seed) for seed in range(20)]
    assert coins[3] == Canaries.drawn("record", 1000, 3) != coins[4]
    counts = np.array([sum(each.included) for each in coins])
    assert abs(counts.mean() - 500) < 5 * 500**0.5 / 20**0.5
    assert counts.std() > 5, "their number is no secret if it is always the same"
    coins[3].write(tmp_path)
    coins[3].check(tmp_path)
    with pytest.raises(ConfigError, match="other coins"):
        coins[4].check(tmp_path)
    (tmp_path / "canaries.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        coins[3].check(tmp_path)
    (tmp_path / "canaries.json").unlink()
    with pytest.raises(ConfigError, match="is missing"):
        coins[3].check(tmp_path)


@pytest.mark.parametrize("data", ["digits", "heart", "diabetes"])
def test_canaries_come_last_and_the_others_stay(data: str) -> None:
    run = compose("distributed", f"data={data}", "data.fit=none", "model=mlp")
    plain = load(run.data, 7)
    planted = with_canaries(plain, 30, 7)
    assert planted.present is not None
    assert planted.canaries is not None
    before, after = everything(plain.train), everything(planted.train)
    for name, value in before.items():
        torch.testing.assert_close(after[name][:-30], value)
        assert after[name].dtype == value.dtype
        assert len(after[name][-30:].unique(dim=0)) > 1
    assert planted.present[:-30].all()
    assert planted.present[-30:].tolist() == list(planted.canaries.included)
    last = planted.train.subset(slice(-30, None))
    assert everything(last).keys() == after.keys()
    mixed = torch.tensor([[0, len(plain.train)], [len(planted.train) - 1, 1]])
    for name, value in planted.train.take(mixed).items():
        torch.testing.assert_close(value.flatten(0, 1), after[name][mixed.reshape(-1)])
    assert with_canaries(plain, 0, 7) is plain
    assert with_canaries(planted, 30, 7) is planted


def test_examples_of_many_lengths_have_no_canaries() -> None:
    run = compose("distributed", "experiment=spam", "audit.canaries=10")
    with pytest.raises(ConfigError, match=r"audit\.canaries=10: data=spam"):
        build_components(run)


@pytest.mark.parametrize("drawn_each", [True, False])
def test_only_those_of_the_coin_are_in_batches(drawn_each: bool) -> None:
    run = compose("distributed", "data=digits", "distributed.batch_size=64")
    dataset = with_canaries(load(run.data, 0), 200, 0)
    task = build_components(run).task
    weights = example_weights(task, dataset.train)
    batches = EpochBatches(
        run,
        dataset.train,
        weights,
        task,
        Topology(),
        present=dataset.present,
        stream=tuple if drawn_each else None,
    )
    assert dataset.present is not None
    images = everything(dataset.train)["image"][~dataset.present]
    seen = torch.cat([batch.fields["image"] for batch in batches.begin(1, 0, 0)])
    distances = torch.cdist(seen.flatten(1), images.flatten(1))
    assert float(distances.min()) > 1
    canaries = everything(dataset.train)["image"][-200:][dataset.present[-200:]]
    there = torch.cdist(seen.flatten(1), canaries.flatten(1)).min(dim=0).values < 1e-3
    assert there.float().mean() > (0.4 if drawn_each else 0.999)
    if not drawn_each:
        assert len(seen) == int(dataset.present.sum()) == batches.weight
    assert batches.steps == -(-(len(dataset.train) if drawn_each else len(seen)) // 64)
