"""Parity 1: metrics over any partition of the data equal metrics over the whole."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from heliotrope.config import ModelConfig, chosen
from heliotrope.evaluation import evaluate
from heliotrope.metrics import (
    Accuracy,
    CalibrationError,
    Confusion,
    HitRate,
    Loss,
    MetricSet,
    Ndcg,
    PredictionHistogram,
    Recall,
    RegressionErrors,
    ScoreCurves,
    TokenLoss,
)
from heliotrope.models import build
from tests.support import confusion_of, fresh_seed, random_split, small_task

MODELS = [
    chosen("model", "mlp", hidden=[9], dropout=0.5),
    chosen("model", "cnn", channels=[3], kernel_size=3, hidden=[]),
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
        merged = functools.reduce(operator.add, measured, task.metrics.zero())
        reduced = task.metrics.from_vector(np.sum([part.to_vector() for part in measured], axis=0))
        for total in (merged, reduced):
            assert total.count == count
            assert (confusion_of(total) == confusion_of(whole)).all()
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
        assert (confusion_of(metrics) == confusion_of(whole)).all()
        assert metrics.compute()["loss"] == pytest.approx(whole.compute()["loss"], rel=3e-6)


def test_the_order_of_a_sum_does_not_matter_to_the_counts() -> None:
    rng = np.random.default_rng(fresh_seed())
    metrics = small_task(classes=5).metrics
    parts = []
    for _ in range(20):
        confusion = rng.integers(0, 10**12, size=25).astype(float)
        count = confusion.sum()
        parts.append(metrics.from_vector(np.array([count, *confusion, rng.random(), count])))
    whole = functools.reduce(operator.add, parts)
    for _ in range(5):
        rng.shuffle(parts)
        middle = int(rng.integers(1, 19))
        left = functools.reduce(operator.add, parts[:middle])
        right = functools.reduce(operator.add, parts[middle:])
        assert (confusion_of(left + right) == confusion_of(whole)).all()
        assert (left + right).compute() == pytest.approx(whole.compute(), rel=1e-12)


# --- every metric by itself ---------------------------------------------------------------


def _token_losses(outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    each = functional.cross_entropy(outputs.mT, batch["next"], reduction="none")
    kept = torch.arange(each.shape[1]) < batch["tokens_length"][:, None]
    return torch.where(kept, each, 0.0).sum(1)


def _label_losses(outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    return functional.cross_entropy(outputs, batch["label"], reduction="none")


def _labels(count: int, draw: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    used = int(torch.randint(1, 5, (), generator=draw))  # some classes may not occur
    outputs = 3 * torch.randn(count, 4, generator=draw)
    return outputs, {"label": torch.randint(used, (count,), generator=draw)}


def _pairs(count: int, draw: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    outputs, batch = _labels(count, draw)
    return outputs[:, :2], {"label": batch["label"].clamp(max=1)}


def _numbers(count: int, draw: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    target = 5 + torch.randn(count, generator=draw)
    return target[:, None] + torch.randn(count, 1, generator=draw), {"target": target}


def _texts(count: int, draw: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    targets = torch.randint(5, (count, 8), generator=draw)
    lengths = torch.randint(9, (count,), generator=draw)
    return torch.randn(count, 8, 5, generator=draw), {"next": targets, "tokens_length": lengths}


def _rankings(count: int, draw: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    scores = torch.randint(6, (count, 12), generator=draw).float()  # with ties
    return scores, {"relevant": torch.rand(count, 12, generator=draw) < 0.1}


_TOKENS = TokenLoss(_token_losses, lambda batch: batch["tokens_length"], characters=True)
_NAMES = ("a", "b", "c", "d")
EACH = {
    "classification": (MetricSet((Confusion(_NAMES), Loss(_label_losses))), _labels),
    "top k and calibration": (
        MetricSet((Accuracy(), Accuracy(3), CalibrationError(), ScoreCurves(4, bins=16))),
        _labels,
    ),
    "scores": (MetricSet((ScoreCurves(),)), _pairs),
    "regression": (MetricSet((RegressionErrors(), PredictionHistogram(0.0, 10.0))), _numbers),
    "text": (MetricSet((_TOKENS, Accuracy(label="next", length="tokens_length"))), _texts),
    "ranking": (MetricSet((HitRate(3), Ndcg(3), Recall(3), Ndcg(50))), _rankings),
}


@pytest.mark.parametrize("name", EACH)
def test_every_metric_is_the_same_for_any_split_and_any_groups(name: str) -> None:
    metrics, make = EACH[name]
    start = fresh_seed()
    rng, draw = np.random.default_rng(start), torch.Generator().manual_seed(start)
    for _ in range(12):
        count = int(rng.choice([1, 2, 7, 80]))
        outputs, batch = make(count, draw)
        whole = metrics.measure(outputs, batch)
        assert whole.count == count
        parts = []
        for part in random_partition(count, rng):
            rows = torch.from_numpy(part)
            parts.append(metrics.measure(outputs[rows], {k: v[rows] for k, v in batch.items()}))
        for part in parts:
            assert part.count or all(map(math.isnan, part.compute().values()))
        rng.shuffle(parts)
        groups = torch.from_numpy(rng.integers(0, 5, count))
        grouped = metrics.measure_groups(outputs, batch, groups, 6)
        computed = grouped.compute()
        for group in range(6):
            mine = groups == group
            alone = metrics.measure(outputs[mine], {k: v[mine] for k, v in batch.items()})
            np.testing.assert_allclose(grouped.sums[group], alone.sums, rtol=1e-9, atol=1e-9)
            told = {key: values[group] for key, values in computed.items()}
            assert told == pytest.approx(alone.compute(), rel=1e-6, abs=1e-9, nan_ok=True)
        vectors = np.sum([part.to_vector() for part in parts], axis=0)
        for total in (
            functools.reduce(operator.add, parts, metrics.zero()),
            metrics.from_vector(vectors),
            grouped.total(),
        ):
            np.testing.assert_allclose(total.sums, whole.sums, rtol=1e-9, atol=1e-9)
            assert total.compute() == pytest.approx(
                whole.compute(), rel=1e-6, abs=1e-9, nan_ok=True
            )
