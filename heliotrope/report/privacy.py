"""What the page says of a run's privacy: the promise, what it assumes, and epsilon as it grew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heliotrope.report.charts import Chart, Drawing, Studio
from heliotrope.report.record import RunRecord
from heliotrope.report.summary import privacy_text

__all__ = ["Promise", "epsilon_curves", "promises"]

_BOUND = "privacy/epsilon_rdp"


@dataclass(frozen=True)
class Promise:
    """A run's label, its guarantee in a line, and what that was counted by and assumes."""

    label: str
    guarantee: str
    conditions: Sequence[str]


def promises(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[Promise]:
    """Return what the runs promise that promise anything."""
    found = []
    for run, label in zip(runs, labels, strict=True):
        said = run.detail("privacy")
        if said is None:
            continue
        assumed = said.get("assumptions") or []
        conditions = assumed if isinstance(assumed, list) else [assumed]
        counted = [
            f"{name.replace('_', ' ')}: {said[name]}"
            for name in ("accountant", "adjacency", "sampling", "noise_source")
            if said.get(name)
        ]
        found.append(Promise(label, privacy_text(run), counted + _sentences(conditions)))
    return found


def epsilon_curves(
    runs: Sequence[RunRecord], labels: Sequence[str], studio: Studio
) -> list[Drawing]:
    """Draw the bound on epsilon after each round, and after each epoch, where there is one."""
    drawings = []
    for axis in ("round", "epoch"):
        lines = [run.curve(_BOUND, axis) for run in runs]
        if not any(lines):
            continue
        said = [
            f"{label}: {line[-1][1]:.4g} after {axis} {line[-1][0]:g}."
            for label, line in zip(labels, lines, strict=True)
            if line
        ]
        caption = "epsilon at most, by RDP"
        svg = studio.curves(Chart(axis, [[line] for line in lines]))
        drawings.append(Drawing(caption, f"{caption}, over {axis}s. {' '.join(said)}", svg))
    return drawings


def _sentences(conditions: Sequence[object]) -> list[str]:
    lines: list[str] = []
    for condition in conditions:
        if isinstance(condition, Mapping):
            lines += [f"{key}: {value}" for key, value in condition.items()]
        else:
            lines.append(str(condition))
    return lines
