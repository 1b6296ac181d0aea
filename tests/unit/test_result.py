"""result.json: one schema for both modes, and the moment a target was reached."""

from __future__ import annotations

import json
import math

import pytest

from heliotrope.config import TargetConfig
from heliotrope.metrics import Direction
from heliotrope.runs.clock import Clock
from heliotrope.runs.events import Progress
from heliotrope.runs.outcome import Outcome, Target, result_of
from tests.support import MODES, compose

DIRECTIONS: dict[str, Direction] = {
    "accuracy": "max",
    "loss": "min",
    "macro_f1": "max",
    "rmse": "min",
}

# What scripts may rely on, from the design.
PROMISED = {
    "schema", "mode", "experiment", "seed", "status", "metrics", "steps", "examples_seen",
    "wall_seconds", "train_seconds", "startup_seconds", "examples_per_second", "bytes_up",
    "bytes_down", "peak_rss_bytes", "privacy", "parameters", "versions", "git_commit",
}  # fmt: skip


def outcome(**changes: object) -> Outcome:
    values: dict[str, object] = {
        "metrics": {"test/accuracy": 0.9, "test/loss": 0.3},
        "unit": {"rounds": 4},
        "counts": Progress(steps=40, examples_seen=1000, bytes_up=7, bytes_down=9),
        "clock": Clock(seconds_before=10.0, train_seconds=4.0),
        "startup_seconds": 1.23456,
        "parameters": 2410,
        "peak_rss_bytes": 5 * 2**20,
        "target": None,
        "packages": ("flwr",),
    }
    return Outcome(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_every_promised_key_is_there(mode: str) -> None:
    run = compose(mode, "experiment=quickstart", "seed=11")  # type: ignore[arg-type]
    result = result_of(run, mode, outcome())  # type: ignore[arg-type]
    assert result.keys() >= PROMISED | {"rounds"}
    assert (result["mode"], result["experiment"], result["seed"]) == (mode, "quickstart", 11)
    assert result["examples_seen"] == 1000
    assert result["examples_per_second"] == 250.0
    assert result["wall_seconds"] >= 10.0
    assert {"python", "torch", "flwr"} <= result["versions"].keys()
    json.dumps(result, allow_nan=False)


def test_a_run_that_did_not_train_has_no_speed() -> None:
    result = result_of(compose("federated"), "federated", outcome(clock=Clock()))
    assert result["examples_per_second"] is None


def watch(metric: str, value: float, seen: list[float], *, stop: bool = True) -> Target:
    target = Target(TargetConfig(metric, value, stop), DIRECTIONS)
    for number, measured in enumerate(seen, start=1):
        counts = Progress(examples_seen=100 * number)
        if target.observe({metric: measured}, {"round": number}, counts, Clock(float(number))):
            break
    return target


@pytest.mark.parametrize(
    ("metric", "value", "seen", "reached_at"),
    [
        ("test/accuracy", 0.9, [0.5, 0.9, 0.95], 2),
        ("test/accuracy", 0.9, [0.5, 0.8999], None),
        ("test/loss", 0.5, [0.9, 0.51, 0.5, 0.1], 3),
        ("test/macro_f1", 0.7, [math.nan, 0.6, 0.7], 3),
        ("test/loss", 0.5, [math.nan, math.inf], None),
        ("test/rmse", 0.5, [0.9, 0.4], 2),
    ],
)
def test_a_target_is_reached_at_the_first_good_value(
    metric: str, value: float, seen: list[float], reached_at: int | None
) -> None:
    summary = watch(metric, value, seen).summary()
    assert summary is not None
    assert (summary["metric"], summary["value"]) == (metric, value)
    assert summary["reached"] is (reached_at is not None)
    assert summary.get("rounds") == reached_at
    if reached_at is not None:
        assert summary["examples_seen"] == 100 * reached_at
        assert summary["seconds"] >= reached_at


def test_the_first_moment_is_kept_while_training_goes_on() -> None:
    summary = watch("test/accuracy", 0.9, [0.5, 0.91, 0.2, 0.99], stop=False).summary()
    assert summary is not None
    assert summary["rounds"] == 2


@pytest.mark.parametrize(("stop", "stops"), [(True, True), (False, False)])
def test_training_stops_only_if_asked(stop: bool, stops: bool) -> None:
    target = Target(TargetConfig("test/accuracy", 0.9, stop), DIRECTIONS)
    assert target.observe({"test/accuracy": 0.8}, {"epoch": 1}, Progress(), Clock()) is False
    assert target.observe({"test/accuracy": 1.0}, {"epoch": 2}, Progress(), Clock()) is stops
    assert target.observe({"test/accuracy": 0.1}, {"epoch": 3}, Progress(), Clock()) is stops
    summary = target.summary()
    assert summary is not None
    assert summary["epochs"] == 2


def test_other_metrics_are_not_the_target() -> None:
    target = Target(TargetConfig("validation/accuracy", 0.9), DIRECTIONS)
    assert not target.observe({"test/accuracy": 1.0}, {"epoch": 1}, Progress(), Clock())


def test_without_a_target_nothing_is_said_of_one() -> None:
    target = Target(TargetConfig(), DIRECTIONS)
    assert not target.observe({"test/accuracy": 1.0}, {"epoch": 1}, Progress(), Clock())
    assert target.summary() is None
    assert "target" not in result_of(compose("federated"), "federated", outcome())
    with_target = outcome(target={"metric": "test/accuracy", "reached": False})
    assert result_of(compose("federated"), "federated", with_target)["target"]["reached"] is False
