"""Metrics agree with scikit-learn, which computes them from the labels, and add up exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from heliotrope.evaluation import evaluate, named
from heliotrope.metrics import Confusion, Loss, Metrics, MetricSet
from tests.support import (
    confusion_of,
    fresh_seed,
    global_random_state_untouched,
    random_split,
    small_task,
)


def random_outputs(
    generator: torch.Generator, count: int, classes: int, used: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw logits and targets; only the first `used` classes occur, so that some are empty."""
    logits = torch.randn(count, classes, generator=generator)
    logits[:, used:] -= 100.0
    return logits, torch.randint(used, (count,), generator=generator)


def of_counts(confusion: np.ndarray, loss_sum: float) -> Metrics:
    """Return metrics with this confusion matrix and sum of losses."""
    count = float(confusion.sum())
    sums = np.concatenate([[count], confusion.ravel(), [loss_sum, count]])
    return small_task(len(confusion)).metrics.from_vector(sums)


@pytest.mark.parametrize(("classes", "used"), [(2, 2), (5, 5), (10, 4), (3, 1)])
@pytest.mark.parametrize("count", [1, 7, 400])
def test_metrics_are_scikit_learns(classes: int, used: int, count: int) -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    logits, targets = random_outputs(generator, count, classes, used)
    metrics = small_task(classes).metrics.measure(logits, {"label": targets})
    predicted = logits.argmax(dim=1)
    labels = list(range(classes))
    assert metrics.count == count
    assert (confusion_of(metrics) == confusion_matrix(targets, predicted, labels=labels)).all()
    computed = metrics.compute()
    assert computed["accuracy"] == pytest.approx(accuracy_score(targets, predicted))
    assert computed["macro_f1"] == pytest.approx(
        f1_score(targets, predicted, average="macro", zero_division=0.0)
    )
    probabilities = logits.double().softmax(dim=1).numpy()
    assert computed["loss"] == pytest.approx(
        log_loss(targets, probabilities, labels=labels), rel=1e-5, abs=1e-6
    )


def test_a_class_missed_altogether_counts_as_zero() -> None:
    metrics = of_counts(np.array([[5, 0, 0], [5, 0, 0], [0, 0, 0]]), 0.0)
    assert metrics.compute()["macro_f1"] == pytest.approx((2 * 5 / 15 + 0) / 2)


def test_no_examples_have_no_metrics_and_change_no_sum() -> None:
    nothing = small_task().metrics.zero()
    assert nothing.count == 0
    assert all(math.isnan(value) for value in nothing.compute().values())
    assert nothing.panels() == {}
    some = of_counts(np.eye(3, dtype=np.int64), 1.5)
    assert (some + nothing).compute() == (nothing + some).compute() == some.compute()


def test_vectors_carry_the_sums_and_can_be_added() -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    task = small_task(4)
    drawn = [random_outputs(generator, 50, 4, 4) for _ in range(3)]
    parts = [task.metrics.measure(logits, {"label": labels}) for logits, labels in drawn]
    added = task.metrics.from_vector(sum(part.to_vector() for part in parts))
    whole = parts[0] + parts[1] + parts[2]
    assert (added.sums == whole.sums).all()
    back = task.metrics.from_vector(whole.to_vector().tolist())
    assert back.compute() == whole.compute()
    assert back.panels() == whole.panels()
    vector = whole.to_vector()
    vector += 1
    assert back.compute() == whole.compute(), "what is done to a vector changed the metrics"


def test_a_large_count_does_not_lose_examples() -> None:
    many = of_counts(np.full((2, 2), 2**50, dtype=np.int64), 1e18)
    one = of_counts(np.eye(2, dtype=np.int64), 0.5)
    assert (many + one).count == 2**52 + 2


def test_names_carry_the_split() -> None:
    metrics = of_counts(np.eye(4, dtype=np.int64), 1.0)
    assert named(metrics, "test") == {
        "test/accuracy": 1.0,
        "test/loss": 0.25,
        "test/macro_f1": 1.0,
    }


def test_the_numbers_that_matter_most_come_first() -> None:
    members = (Loss(lambda outputs, _: outputs), Confusion(("a", "b")))
    assert list(MetricSet(members).directions) == ["loss", "accuracy", "macro_f1"]
    first = MetricSet(members, ("macro_f1", "loss"))
    assert (
        list(first.directions) == list(first.zero().compute()) == ["macro_f1", "loss", "accuracy"]
    )
    with pytest.raises(ValueError, match="no metric computes f2: there are loss, accuracy"):
        MetricSet(members, ("f2",))
    with pytest.raises(ValueError, match="more than one metric computes loss"):
        MetricSet((*members, members[0]))
    with pytest.raises(ValueError, match="no metric computes a number"):
        MetricSet(())


def test_losses_are_told_per_unit_of_weight() -> None:
    metrics = MetricSet((Loss(lambda outputs, _: outputs, lambda batch: batch["tokens_length"]),))
    batch = {"tokens_length": torch.tensor([3, 0, 1])}
    measured = metrics.measure(torch.tensor([6.0, 0.0, 4.0]), batch)
    assert measured.count == 3
    assert measured.compute() == {"loss": 2.5}


def test_one_nan_among_the_outputs_shows_in_the_sums_of_its_group() -> None:
    task = small_task(3)
    outputs = torch.zeros(4, 3)
    outputs[2, 1] = math.nan
    groups = torch.tensor([0, 0, 1, 2])
    sums = task.metrics.measure_groups(outputs, {"label": torch.tensor([0, 1, 2, 0])}, groups, 4)
    assert sums.finite.tolist() == [True, False, True, True]


# --- evaluate -----------------------------------------------------------------------------


class DropsWhileTraining(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.9))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_is_entered_and_left(training: bool) -> None:
    task = small_task()
    split = random_split(50, task, torch.Generator().manual_seed(fresh_seed()))
    model = DropsWhileTraining().train(training)
    with global_random_state_untouched():
        values = [evaluate(model, task, split, 8).compute()["loss"] for _ in range(2)]
    assert values[0] == values[1], "dropout was active"
    assert all(module.training is training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_empty_split_and_empty_indices_have_no_metrics() -> None:
    task = small_task()
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(4, 3)
    assert evaluate(model, task, random_split(0, task, generator), 8).count == 0
    assert evaluate(model, task, random_split(5, task, generator), 8, []).count == 0


def test_indices_choose_and_may_repeat() -> None:
    task = small_task()
    split = random_split(10, task, torch.Generator().manual_seed(fresh_seed()))
    model = torch.nn.Linear(4, 3)
    twice = evaluate(model, task, split, 3, [4, 4, 7])
    with torch.no_grad():
        batch = split.take(torch.tensor([4, 4, 7]))
        by_hand = task.metrics.measure(model(batch["image"]), batch)
    assert (confusion_of(twice) == confusion_of(by_hand)).all()
    assert twice.compute()["loss"] == pytest.approx(by_hand.compute()["loss"], rel=1e-6)
