"""Any number that a task measures can be a target; others are refused, naming those there are."""

from __future__ import annotations

import re

import pytest

from heliotrope.config import Mode
from heliotrope.errors import ConfigError
from heliotrope.metrics import Direction
from heliotrope.metrics.chosen import check_chosen_metrics
from tests.support import compose, small_task

CLASSES = small_task().metrics.directions
VALUES: dict[str, Direction] = {"rmse": "min", "r2": "max"}


@pytest.mark.parametrize(
    ("mode", "directions", "overrides", "said"),
    [
        (
            "federated",
            CLASSES,
            ["target.metric=test/acuracy", "target.value=0.9"],
            ", validation/macro_f1. Did you mean 'test/accuracy'?",
        ),
        (
            "federated",
            CLASSES,
            ["target.metric=validation/loss", "target.value=1", "data.validation_fraction=0"],
            "target.metric=validation/loss is not one of test/accuracy, test/loss, test/macro_f1.",
        ),
        (
            "distributed",
            CLASSES,
            ["distributed.keep_best=1", "distributed.best_metric=test/los"],
            "Did you mean 'test/loss'?",
        ),
        (
            "distributed",
            CLASSES,
            ["distributed.early_stopping.metric=accuracy"],
            "distributed.early_stopping.metric=accuracy is not one of test/accuracy,",
        ),
        (
            "distributed",
            VALUES,
            ["target.metric=test/accuracy", "target.value=1", "data.validation_fraction=0"],
            "target.metric=test/accuracy is not one of test/rmse, test/r2.",
        ),
    ],
)
def test_a_metric_that_the_task_does_not_have_is_refused(
    mode: Mode, directions: dict[str, Direction], overrides: list[str], said: str
) -> None:
    run = compose(mode, "data.validation_fraction=0.1", *overrides)
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_chosen_metrics(run, mode, directions)


def test_every_number_of_the_task_may_be_chosen() -> None:
    for name in VALUES:
        run = compose("distributed", f"target.metric=test/{name}", "target.value=1")
        check_chosen_metrics(run, "distributed", VALUES)
