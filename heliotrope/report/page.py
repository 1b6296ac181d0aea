"""Everything the page's template is given. The template decides how it looks, this what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from heliotrope import __version__
from heliotrope.report.accounts import client_accounts
from heliotrope.report.charts import COLOURS, MARKERS, studio
from heliotrope.report.clients import clients
from heliotrope.report.compare import NOT_SET, differences, labels, shared_name
from heliotrope.report.coordinates import coordinates
from heliotrope.report.frontier import draw_frontiers, frontiers
from heliotrope.report.panels import curves, matrices
from heliotrope.report.predictions import predictions
from heliotrope.report.privacy import epsilon_curves, promises
from heliotrope.report.record import RunRecord, number
from heliotrope.report.replicates import Replicates, replicates
from heliotrope.report.summary import order_metrics, rows, target
from heliotrope.report.templates import filled, resource
from heliotrope.report.units import (
    UNKNOWN,
    count_text,
    metric_label,
    seconds_text,
)

__all__ = ["render"]

_MOST_FAILURES = 100


@dataclass(frozen=True)
class Card:
    """A run at a glance: (figure, what it is) pairs under its name."""

    label: str
    mode: str
    status: str
    finished: bool
    figures: Sequence[tuple[str, str]]


def render(runs: Sequence[RunRecord]) -> str:
    """Return the page for one run or several: HTML that needs no other file.

    Runs that differ only in seed or fold are one line of tables and charts. What is shown of single
    models is that of the first of them; every run has a page of its own beside it.
    """
    lines = replicates(runs)
    shown = [line.representative for line in lines]
    named, each = labels(shown), labels(runs)
    single = [_single(line, label) for line, label in zip(lines, named, strict=True)]
    line_of = {run: index for index, line in enumerate(lines) for run in line.positions}
    colours = [line_of[run] for run in range(len(runs))]
    with studio() as drawing:
        charts = {
            "curve_rows": curves(lines, named, drawing),
            "matrices": matrices(shown, single, drawing),
            "clients": clients(shown, single, drawing),
            "predictions": predictions(shown, single, drawing),
            "epsilons": epsilon_curves(shown, single, drawing),
            "frontiers": draw_frontiers(frontiers(runs), each, colours, drawing),
        }
    return filled(
        "report/report.html.j2",
        **charts,
        style=resource("report/report.css"),
        title=_title(runs, named),
        version=__version__,
        labels=named,
        seeds=len(runs) > len(lines),
        shapes=[(i % COLOURS, MARKERS[i % len(MARKERS)]) for i in range(len(lines))],
        cards=[_card(line, label) for line, label in zip(lines, named, strict=True)],
        notes=[(label, n) for run, label in zip(runs, each, strict=True) for n in _notes(run)],
        rows=rows(lines),
        coordinates=coordinates(lines),
        targets=_targets(runs, each),
        privacy=promises(shown, single),
        accounts=[
            (label, found)
            for run, label in zip(runs, each, strict=True)
            if (found := client_accounts(run)).lines
        ],
        failures=_failures(runs, each)[:_MOST_FAILURES],
        failure_count=sum(len(run.of_kind("failure")) for run in runs),
        not_set=NOT_SET,
        differences=differences(shown),
        configs=[(label, run.config_text) for run, label in zip(shown, single, strict=True)],
        run_labels=each,
        provenance_lines=_provenance(runs),
    )


def _single(line: Replicates, label: str) -> str:
    """Return the label of what is shown of the first run alone."""
    first = line.runs[0]
    fold = "" if first.fold is None else f", fold {first.fold}"
    return label if len(line.runs) == 1 else f"{label} (seed {first.seed}{fold})"


def _notes(run: RunRecord) -> list[str]:
    """Return what a reader must know of a run before anything else."""
    canaries = run.detail("canaries") or {}
    planted, included = (number(canaries.get(key)) for key in ("planted", "included"))
    if planted is None or included is None:
        return list(run.notes)
    told = (
        f"{planted:,.0f} canary {canaries.get('unit', 'participant')}s of random numbers were "
        f"planted for an audit; {included:,.0f} of them took part in training."
    )
    return [*run.notes, told]


def _title(runs: Sequence[RunRecord], named: Sequence[str]) -> str:
    if len(runs) == 1:
        return named[0]
    name = shared_name(runs)
    return f"{name}: {len(runs)} runs compared" if name else f"{len(runs)} runs compared"


def _card(line: Replicates, label: str) -> Card:
    run = line.runs[0]
    told = {row.label: row.cells[0] for row in rows([line])}
    main = [metric_label(name) for name in order_metrics(run.metrics)[:2]]
    figures = [(told[name], name) for name in (*main, "wall time") if name in told]
    if run.bytes_exchanged is not None:
        figures.append((told["bytes exchanged"], "exchanged"))
    status = f"{run.status}, {line.count}" if len(line.runs) > 1 else run.status
    return Card(label, run.mode, status, run.status == "completed", figures)


def _targets(runs: Sequence[RunRecord], named: Sequence[str]) -> list[list[str]]:
    lines = []
    for run, label in zip(runs, named, strict=True):
        goal = target(run)
        if goal is None:
            continue
        unit = "rounds" if run.mode == "federated" else "epochs"
        period = UNKNOWN if goal.period is None else f"{goal.period:g} {unit}"
        examples = UNKNOWN if goal.examples is None else count_text(goal.examples)
        seconds = UNKNOWN if goal.seconds is None else seconds_text(goal.seconds)
        lines.append([label, goal.goal, "yes" if goal.reached else "no", period, examples, seconds])
    return lines


def _failures(runs: Sequence[RunRecord], named: Sequence[str]) -> list[list[str]]:
    lines = []
    for run, label in zip(runs, named, strict=True):
        for event in run.of_kind("failure"):
            when = _keyed(event, ("round", "epoch"))
            who = _keyed(event, ("client", "rank", "worker"))
            lines.append([label, when, who, str(event.get("reason", UNKNOWN))])
    return lines


def _keyed(event: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {event[key]}" for key in keys if event.get(key) is not None) or UNKNOWN


def _provenance(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Return what produced each run: directory, start, commit, machine, versions."""
    found: list[dict[str, str]] = []
    for run in runs:
        facts = {"directory": str(run.directory), "started": _started(run)}
        if (run.result or {}).get("git_commit"):
            facts["git commit"] = str((run.result or {})["git_commit"])
        for key in ("machine", "versions"):
            said = (run.result or {}).get(key)
            if isinstance(said, Mapping):
                facts |= {str(name): str(value) for name, value in said.items()}
            elif said is not None:
                facts[key] = str(said)
        found.append(facts)
    keys = dict.fromkeys(key for facts in found for key in facts)
    return [[key, *(facts.get(key, UNKNOWN) for facts in found)] for key in keys]


def _started(run: RunRecord) -> str:
    when = number(run.events[0].get("time")) if run.events else None
    try:
        return (
            UNKNOWN if when is None else f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M} UTC"
        )
    except (ValueError, OverflowError, OSError):
        return UNKNOWN
