"""When a run whose metric no longer improves is stopped."""

from __future__ import annotations

import json

import pytest

from distributed.loop.early_stopping import EarlyStopping
from heliotrope.config.distributed import EarlyStoppingConfig
from heliotrope.metrics import Direction

_NAN = float("nan")
DIRECTIONS: dict[str, Direction] = {"loss": "min", "accuracy": "max", "rmse": "min"}


@pytest.mark.parametrize(
    ("cfg", "values", "after"),
    [
        (EarlyStoppingConfig("test/loss", 2), [3, 2, 2, 1, 1, 1], 6),
        (EarlyStoppingConfig("test/accuracy", 2), [1, 2, 2, 3, 1, 3], 6),
        (EarlyStoppingConfig("test/loss", 1, mode="max"), [1, 2, 1], 3),
        (EarlyStoppingConfig("test/rmse", 2), [3, 2, 2, 1, 1, 1], 6),
        (EarlyStoppingConfig("test/loss", 2, min_delta=0.5), [3, 2.8, 2.6], 3),
        (EarlyStoppingConfig("test/loss", 2, min_delta=0.5), [3, 2.8, 2.4, 2.3], None),
        (EarlyStoppingConfig("test/loss", 2), [_NAN, 3, _NAN, _NAN], 4),
        (EarlyStoppingConfig(None, 1), [1, 1, 1], None),
    ],
)
def test_a_run_stops_after_as_many_evaluations_without_improvement(
    cfg: EarlyStoppingConfig, values: list[float], after: int | None
) -> None:
    watched = EarlyStopping(cfg, DIRECTIONS)
    name = cfg.metric or "test/loss"
    stops = []
    for value in values:
        resumed = EarlyStopping(cfg, DIRECTIONS)  # as if the run was resumed after each evaluation
        resumed.restore(json.loads(json.dumps(watched.saved())))
        watched = resumed
        stops.append(watched.observe({name: value}))
    assert stops == [number + 1 == after for number in range(len(values))]


def test_another_metric_begins_anew() -> None:
    watched = EarlyStopping(EarlyStoppingConfig("test/loss", 1), DIRECTIONS)
    watched.observe({"test/loss": 1.0})
    assert watched.observe({"test/loss": 1.0})
    other = EarlyStopping(EarlyStoppingConfig("test/accuracy", 1), DIRECTIONS)
    other.restore(watched.saved())
    assert not other.stop
