"""What both modes do with a trained model's numbers: final event, report, result.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from heliotrope.config import Mode, Run
from heliotrope.display import Display
from heliotrope.evaluation import named
from heliotrope.metrics import ClassificationMetrics
from heliotrope.result import Outcome, result_of
from heliotrope.rundir import RunDirectory
from heliotrope.tasks import Task
from heliotrope.tracking import Tracker

__all__ = ["finish"]

_log = logging.getLogger(__name__)


def finish(
    run: Run,
    mode: Mode,
    home: RunDirectory,
    tracker: Tracker,
    final: Mapping[str, ClassificationMetrics],
    task: Task,
    outcome: Outcome,
    display: Display,
) -> None:
    """Write the last events, report.html and, last of all, result.json; say where they are.

    `final` maps a split's name to its metrics. A report that cannot be drawn is logged and
    does not lose the run.
    """
    values = {
        name: value
        for split, metrics in final.items()
        for name, value in named(metrics, split).items()
    }
    outcome.metrics = values
    tracker.progress(
        "final",
        outcome.counts,
        outcome.clock,
        {name.rstrip("s"): number for name, number in outcome.unit.items()},
        **values,
        confusion_matrix=final["test"].confusion.tolist(),
        class_names=list(task.class_names),
    )
    tracker.emit("end", status="completed")
    result = result_of(run, mode, outcome)
    _report(home, result, display)
    home.write_result(result)
    accuracy = values["test/accuracy"]
    display.say(f"{mode} {run.name}: test accuracy {accuracy:.4f}, results in {home.path}")


def _report(home: RunDirectory, result: dict[str, Any], display: Display) -> None:
    from heliotrope.report import read_run, write_report

    try:
        record = replace(read_run(home.path), result=result, notes=())
        write_report([record], home.report)
    except Exception:  # noqa: BLE001 - cosmetic beside the run's results
        _log.exception("report.html could not be written")
        display.say("report.html could not be written; run.log says why")
