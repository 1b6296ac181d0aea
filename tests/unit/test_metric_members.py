"""Each metric is what scikit-learn, or float64 by hand, makes of the same outputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch import Tensor
from torch.nn import functional

from heliotrope.metrics import (
    Accuracy,
    CalibrationError,
    HitRate,
    Metric,
    Metrics,
    MetricSet,
    Ndcg,
    PredictionHistogram,
    Recall,
    RegressionErrors,
    ScoreCurves,
    TokenLoss,
)
from tests.support import fresh_seed


def measured(metric: Metric, outputs: Tensor, **batch: Tensor) -> Metrics:
    return MetricSet((metric,)).measure(outputs, batch)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(fresh_seed())


def classified(count: int, classes: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Draw logits that know something of their labels."""
    draw = generator()
    labels = torch.randint(classes, (count,), generator=draw)
    noise = scale * torch.randn(count, classes, generator=draw)
    return noise + scale * functional.one_hot(labels, classes), labels


# --- labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_scikit_learns(k: int) -> None:
    outputs, labels = classified(300, 7)
    (value,) = measured(Accuracy(k), outputs, label=labels).compute().values()
    expected = oracle.top_k_accuracy_score(labels, outputs.numpy(), k=k, labels=range(7))
    assert value == pytest.approx(expected)


def test_equal_outputs_and_nan_are_not_right() -> None:
    outputs = torch.tensor([[1.0, 1.0, 0.0], [3.0, 1.0, 2.0], [math.nan, 1.0, math.nan]])
    labels = torch.tensor([0, 0, 1])
    assert measured(Accuracy(), outputs, label=labels).compute() == {"accuracy": 1 / 3}
    top = measured(Accuracy(2), outputs, label=labels).compute()
    assert top == {"top_2_accuracy": 2 / 3}


def test_padding_counts_for_nothing() -> None:
    draw = generator()
    lengths = torch.tensor([3, 1, 0, 5])
    outputs = torch.randn(4, 8, 6, generator=draw)
    targets = torch.randint(6, (4, 8), generator=draw)
    real = torch.arange(8) < lengths[:, None]

    def losses(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        each = functional.cross_entropy(outputs.mT, batch["next"], reduction="none")
        return torch.where(real, each, 0.0).sum(1)

    loss = TokenLoss(losses, lambda batch: batch["tokens_length"], characters=True)
    both = MetricSet((loss, Accuracy(label="next", length="tokens_length")))
    outputs[~real] = math.nan  # whatever a model says of padding
    found = both.measure(outputs, {"next": targets, "tokens_length": lengths}).compute()
    kept, wanted = outputs[real], targets[real]
    nats = float(functional.cross_entropy(kept.double(), wanted))
    assert found == pytest.approx(
        {
            "loss": nats,
            "perplexity": math.exp(nats),
            "bits_per_character": nats / math.log(2),
            "accuracy": float((kept.argmax(1) == wanted).double().mean()),
        }
    )


def test_tokens_that_are_not_characters_have_no_bits_per_character() -> None:
    assert list(TokenLoss(lambda outputs, _: outputs).directions) == ["loss", "perplexity"]


@pytest.mark.parametrize("classes", [2, 5])
def test_the_calibration_error_is_that_of_its_definition(classes: int) -> None:
    outputs, labels = classified(500, classes)
    chances = outputs.softmax(1)
    confidence, predicted = chances.max(1)
    right = (predicted == labels).double()
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap = (right[inside].mean() - confidence[inside].double().mean()).abs()
            expected += float(gap) * int(inside.sum()) / 500
    metrics = measured(CalibrationError(), outputs, label=labels)
    assert metrics.compute()["calibration_error"] == pytest.approx(expected, rel=1e-6)
    shown = metrics.panels()["reliability"]
    assert sum(shown["count"]) == 500
    total = np.dot(shown["count"], shown["accuracy"])
    assert total == pytest.approx(float(right.sum()))


def test_a_sure_and_right_model_is_calibrated() -> None:
    outputs = 1000 * torch.eye(4)
    metrics = measured(CalibrationError(), outputs, label=torch.arange(4))
    assert metrics.compute() == {"calibration_error": 0.0}


# --- scores -------------------------------------------------------------------------------


def bounds(scores: np.ndarray, positive: np.ndarray, bins: int) -> tuple[float, float]:
    """Return by how much AUROC and average precision may be off, as `ScoreCurves` says."""
    place = np.floor((scores / (1 + np.abs(scores)) + 1) / 2 * bins).astype(int)
    found = np.bincount(place[positive], minlength=bins)[::-1]
    wrong = np.bincount(place[~positive], minlength=bins)[::-1]
    p, n = found / found.sum(), wrong / wrong.sum()
    there, errors = np.cumsum(found), np.cumsum(wrong)
    before, errors_before = there - found, errors - wrong
    with np.errstate(all="ignore"):
        spread = there / (there + errors_before) - (before + 1) / (before + 1 + errors)
    return float((p * n).sum() / 2), float((p * np.where(found > 0, spread, 0)).sum())


@pytest.mark.parametrize("bins", [4, 64, 512])
@pytest.mark.parametrize(("count", "scale"), [(30, 1.0), (3000, 0.1), (3000, 1.0), (3000, 30.0)])
def test_areas_are_within_the_stated_bound_of_the_exact_ones(
    count: int, scale: float, bins: int
) -> None:
    outputs, labels = classified(count, 2, scale)
    labels[:2] = torch.tensor([0, 1])
    found = measured(ScoreCurves(bins=bins), outputs, label=labels).compute()
    scores, positive = (outputs[:, 1].double() - outputs[:, 0]).numpy(), labels.numpy() == 1
    for_area, for_average = bounds(scores, positive, bins)
    rounding = 1e-12
    exact = oracle.roc_auc_score(positive, scores)
    assert abs(found["auroc"] - exact) <= for_area + rounding
    average = oracle.average_precision_score(positive, scores)
    assert abs(found["average_precision"] - average) <= for_average + rounding
    if bins == 512 and count == 3000 and scale == 1.0:
        assert found["auroc"] == pytest.approx(exact, abs=1e-4)
        assert found["average_precision"] == pytest.approx(average, abs=2e-3)


def test_areas_are_exact_where_no_bin_holds_two_scores() -> None:
    draw = generator()
    labels = torch.randint(2, (200,), generator=draw)
    scores = torch.randint(-3, 4, (200,), generator=draw) + labels
    outputs = torch.stack([torch.zeros(200), scores.float()], 1)
    metrics = measured(ScoreCurves(), outputs, label=labels)
    found = metrics.compute()
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(labels, scores))
    assert found["average_precision"] == pytest.approx(
        oracle.average_precision_score(labels, scores)
    )
    shown = metrics.panels()
    wrong, right, _ = oracle.roc_curve(labels, scores, drop_intermediate=False)
    assert shown["roc"]["false_positive_rate"] == pytest.approx(wrong, abs=1e-6)
    assert shown["roc"]["true_positive_rate"] == pytest.approx(right, abs=1e-6)
    precision, recall, _ = oracle.precision_recall_curve(labels, scores)
    assert shown["precision_recall"]["precision"] == pytest.approx(precision[:-1][::-1], abs=1e-6)
    assert shown["precision_recall"]["recall"] == pytest.approx(recall[:-1][::-1], abs=1e-6)


def test_areas_of_many_classes_are_means_of_each_against_the_rest() -> None:
    outputs, labels = classified(4000, 4)
    labels[labels == 3] = 2  # a class without examples is left out
    found = measured(ScoreCurves(4, bins=4096), outputs, label=labels).compute()
    chances = outputs.double().softmax(1).numpy()
    present = [(labels.numpy() == c, chances[:, c]) for c in range(3)]
    areas = [oracle.roc_auc_score(*pair) for pair in present]
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-4)
    averages = [oracle.average_precision_score(*pair) for pair in present]
    assert found["average_precision"] == pytest.approx(np.mean(averages), abs=1e-3)


def test_one_class_only_has_no_area_and_no_curve() -> None:
    outputs, _ = classified(10, 2)
    metrics = measured(ScoreCurves(), outputs, label=torch.ones(10, dtype=torch.int64))
    assert all(math.isnan(value) for value in metrics.compute().values())
    assert metrics.panels() == {}


def test_outputs_that_are_not_finite_have_a_place_in_the_histogram() -> None:
    outputs = torch.tensor([[0.0, math.nan], [0.0, math.inf], [0.0, -math.inf], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 0, 1])
    for metric in (ScoreCurves(), CalibrationError(), ScoreCurves(3)):
        found = outputs if metric != ScoreCurves(3) else functional.pad(outputs, (0, 1))
        assert measured(metric, found, label=labels).count == 4
    infinite = measured(ScoreCurves(), outputs[1:], label=labels[1:])
    assert infinite.compute() == {"auroc": 1.0, "average_precision": 1.0}


# --- numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_errors_of_numbers_are_scikit_learns(shape: tuple[int, ...]) -> None:
    draw = generator()
    target = 150 + 70 * torch.randn(400, generator=draw)
    outputs = target + 40 * torch.randn(400, generator=draw)
    found = measured(RegressionErrors(), outputs.view(shape), target=target).compute()
    pair = target.double().numpy(), outputs.double().numpy()
    assert found == pytest.approx(
        {
            "rmse": oracle.root_mean_squared_error(*pair),
            "mae": oracle.mean_absolute_error(*pair),
            "r2": oracle.r2_score(*pair),
        }
    )


def test_r2_of_targets_far_from_zero_keeps_its_digits() -> None:
    draw = generator()
    target = 1e4 + torch.randn(1000, generator=draw)
    outputs = target + 0.5 * torch.randn(1000, generator=draw)
    found = measured(RegressionErrors(), outputs, target=target).compute()["r2"]
    exact = oracle.r2_score(target.double().numpy(), outputs.double().numpy())
    assert found == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("target", [[0.1] * 7, [3.0]])
def test_targets_that_do_not_differ_have_no_r2(target: list[float]) -> None:
    found = measured(RegressionErrors(), torch.zeros(len(target)), target=torch.tensor(target))
    computed = found.compute()
    assert math.isnan(computed["r2"])
    assert computed["mae"] == pytest.approx(target[0])


def test_predictions_are_counted_beside_their_targets() -> None:
    metrics = MetricSet((PredictionHistogram(0.0, 10.0, bins=2), RegressionErrors()))
    outputs = torch.tensor([1.0, 9.0, 9.0, -5.0, 99.0, math.nan])
    target = torch.tensor([1.0, 1.0, 9.0, 9.0, 10.0, 0.0])
    shown = metrics.measure(outputs, {"target": target}).panels()
    assert shown == {"predictions": {"low": 0.0, "high": 10.0, "counts": [[2, 1], [1, 2]]}}


# --- rankings -----------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 50])
def test_ranking_metrics_are_those_of_their_definitions(k: int) -> None:
    draw = generator()
    scores = torch.randn(60, 20, generator=draw)
    relevant = torch.rand(60, 20, generator=draw) < 0.15
    relevant[0] = False
    metrics = MetricSet((HitRate(k), Recall(k), Ndcg(k)))
    found = metrics.measure(scores, {"relevant": relevant}).compute()
    kept = relevant.any(1)
    top = scores.topk(min(k, 20)).indices
    hits = relevant.gather(1, top)[kept].double()
    totals = relevant[kept].sum(1)
    assert found[f"hit_rate_at_{k}"] == pytest.approx(float((hits.sum(1) > 0).double().mean()))
    assert found[f"recall_at_{k}"] == pytest.approx(float((hits.sum(1) / totals).mean()))
    assert found[f"ndcg_at_{k}"] == pytest.approx(
        oracle.ndcg_score(relevant[kept].numpy(), scores[kept].numpy(), k=k)
    )


def test_the_place_of_one_relevant_candidate_is_enough() -> None:
    draw = generator()
    scores = torch.randn(40, 9, generator=draw)
    place = torch.randint(9, (40,), generator=draw)
    metrics = MetricSet((HitRate(3), Recall(3), Ndcg(3)))
    mask = functional.one_hot(place, 9).bool()
    found = metrics.measure(scores, {"relevant": place}).compute()
    assert found == metrics.measure(scores, {"relevant": mask}).compute()
    assert found["hit_rate_at_3"] == found["recall_at_3"]
    expected = oracle.top_k_accuracy_score(place, scores.numpy(), k=3, labels=range(9))
    assert found["hit_rate_at_3"] == pytest.approx(expected)


def test_equal_scores_and_nan_are_no_hits() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0], [math.nan, -1.0, -2.0], [-1.0, math.nan, -2.0]])
    found = measured(HitRate(1), scores, relevant=torch.tensor([0, 0, 0])).compute()
    assert found == {"hit_rate_at_1": 1 / 3}
