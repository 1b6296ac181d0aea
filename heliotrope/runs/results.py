"""What both modes do with a trained model's numbers: final event, report, result.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from heliotrope.config import Mode, Run
from heliotrope.evaluation import named
from heliotrope.metrics import Metrics
from heliotrope.report.units import metric_label, metric_text
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.display import Display
from heliotrope.runs.events import Tracker
from heliotrope.runs.outcome import Outcome, result_of

__all__ = ["write_outcome"]

_log = logging.getLogger(__name__)


def write_outcome(
    run: Run,
    mode: Mode,
    run_dir: RunDirectory,
    tracker: Tracker,
    final: Mapping[str, Metrics],
    outcome: Outcome,
    display: Display,
) -> None:
    """Write the last events, report.html and, last of all, result.json; say where they are.

    `final` maps a split's name to its metrics. A report that cannot be drawn is logged and
    does not lose the run.
    """
    display.over = True  # a reader that has gone ends nothing any more
    values = {
        name: value
        for split, metrics in final.items()
        for name, value in named(metrics, split).items()
    } | dict(outcome.metrics)
    outcome.metrics = values
    outcome.directions = final["test"].metric_set.directions
    tracker.progress(
        "final",
        outcome.counts,
        outcome.clock,
        {name.rstrip("s"): number for name, number in outcome.unit.items()},
        **values,
        **final["test"].panels(),
    )
    tracker.emit("end", status=outcome.status)
    result = result_of(run, mode, outcome)
    _report(run_dir, result, display)
    run_dir.write_result(result)
    name = f"test/{next(iter(outcome.directions))}"
    main = f"{metric_label(name)} {metric_text(values[name])}"
    given_up = "pruned, " if outcome.pruned else ""
    display.say(f"{mode} {run.name}: {given_up}{main}, results in {run_dir.path}")


def _report(run_dir: RunDirectory, result: dict[str, Any], display: Display) -> None:
    from heliotrope.report import read_run, write_report

    try:
        record = replace(read_run(run_dir.path), result=result, notes=())
        write_report([record], run_dir.report)
    except Exception:  # noqa: BLE001 - cosmetic beside the run's results
        _log.exception("report.html could not be written")
        display.say("report.html could not be written; run.log says why")
