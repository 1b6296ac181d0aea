"""Parity 1: metrics over any partition of the data equal metrics over the whole."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
import torch

from heliotrope.config import CnnConfig, MlpConfig, ModelConfig
from heliotrope.evaluation import evaluate
from heliotrope.metrics import ClassificationMetrics
from heliotrope.models import build
from tests.support import fresh_seed, random_split, small_task

MODELS = [
    MlpConfig("mlp", hidden=[9], dropout=0.5),
    CnnConfig("cnn", channels=[3], kernel_size=3, hidden=[]),
]


def random_partition(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut a random order of all positions at random places: parts of any size, also none."""
    cuts = np.sort(rng.integers(0, count + 1, size=int(rng.integers(0, 12))))
    return np.split(rng.permutation(count), cuts)


@pytest.mark.parametrize("cfg", MODELS, ids=["mlp", "cnn"])
def test_metrics_over_any_partition_equal_those_over_the_whole(cfg: ModelConfig) -> None:
    start = fresh_seed()
    rng = np.random.default_rng(start)
    task = small_task(classes=6, shape=(1, 5, 4))
    model = build(cfg, task, start)
    for _ in range(15):
        count = int(rng.integers(1, 300))
        split = random_split(count, task, torch.Generator().manual_seed(int(rng.integers(2**31))))
        whole = evaluate(model, task, split, count)
        parts = random_partition(count, rng)
        measured = [
            evaluate(model, task, split, int(rng.integers(1, 64)), part.tolist()) for part in parts
        ]
        assert [part.count for part in measured] == [len(part) for part in parts]
        rng.shuffle(measured)
        merged = functools.reduce(operator.add, measured, task.no_metrics())
        reduced = ClassificationMetrics.from_vector(
            np.sum([part.to_vector() for part in measured], axis=0)
        )
        for total in (merged, reduced):
            assert total.count == count
            assert (total.confusion == whole.confusion).all()
            values, wanted = total.compute(), whole.compute()
            assert values["accuracy"] == wanted["accuracy"]
            assert values["macro_f1"] == wanted["macro_f1"]
            # A row's logits differ in the last bits with the number of rows beside it.
            assert values["loss"] == pytest.approx(wanted["loss"], rel=3e-6)


def test_the_batch_size_changes_nothing() -> None:
    start = fresh_seed()
    task = small_task(classes=4, shape=(7,))
    model = build(MODELS[0], task, start)
    split = random_split(101, task, torch.Generator().manual_seed(start))
    whole = evaluate(model, task, split, 1000)
    for batch_size in (1, 2, 50, 100, 101, 102):
        metrics = evaluate(model, task, split, batch_size)
        assert (metrics.confusion == whole.confusion).all()
        assert metrics.loss_sum == pytest.approx(whole.loss_sum, rel=3e-6)


def test_the_order_of_a_sum_does_not_matter_to_the_counts() -> None:
    rng = np.random.default_rng(fresh_seed())
    parts = [
        ClassificationMetrics(rng.integers(0, 10**12, size=(5, 5)), float(rng.random()))
        for _ in range(20)
    ]
    whole = functools.reduce(operator.add, parts)
    for _ in range(5):
        rng.shuffle(parts)
        middle = int(rng.integers(1, 19))
        left = functools.reduce(operator.add, parts[:middle])
        right = functools.reduce(operator.add, parts[middle:])
        assert ((left + right).confusion == whole.confusion).all()
        assert (left + right).loss_sum == pytest.approx(whole.loss_sum, rel=1e-12)
