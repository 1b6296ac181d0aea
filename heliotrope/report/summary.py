"""The facts of runs side by side: one row a fact, one cell a run, or for runs of many seeds.

The terminal and the page show the same rows, so they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from heliotrope.report.record import RunRecord, number
from heliotrope.report.replicates import Average, Replicates
from heliotrope.report.units import (
    MINUS,
    TIMES,
    UNKNOWN,
    bytes_text,
    count_text,
    metric_label,
    metric_text,
    rate_text,
    seconds_text,
)

__all__ = ["Row", "Target", "order_metrics", "rows", "target"]

NO_PRIVACY = "no privacy guarantee"


@dataclass(frozen=True)
class Row:
    """A fact: its label, a text a column, how each compares with the first, which are best."""

    label: str
    cells: Sequence[str]
    against_first: Sequence[str]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Target:
    """A metric to reach and when it was; None where it was not reached or not recorded.

    Parameters
    ----------
    metric, value, lower
        What is to be reached, and whether lower is better.
    reached
        Whether it was.
    period
        The epoch or round in which it was.
    examples, seconds
        Examples seen, and seconds of wall time, until then.
    """

    metric: str
    value: float
    lower: bool
    reached: bool
    period: float | None = None
    examples: float | None = None
    seconds: float | None = None

    @property
    def goal(self) -> str:
        """`test accuracy ≥ 0.95`."""
        sign = "≤" if self.lower else "≥"
        return f"{metric_label(self.metric)} {sign} {self.value:g}"


def rows(columns: Sequence[Replicates]) -> list[Row]:
    """Return every row some run can fill, in reading order; of several seeds mean ± deviation."""
    runs = [run for column in columns for run in column.runs]
    table = [_words("mode", columns, lambda run: run.mode)]
    table.append(_words("status", columns, lambda run: run.status))
    seeds = [UNKNOWN if column.runs[0].seed is None else column.seeds for column in columns]
    table.append(Row("seed", seeds, [""] * len(seeds)))
    folds = [column.folds or UNKNOWN for column in columns]
    table.append(Row("fold", folds, [""] * len(folds)))
    for name in order_metrics(name for run in runs for name in run.metrics):
        way = next(filter(None, (run.direction(name) for run in runs)), None)
        label, value = metric_label(name), partial(_metric, name=name)
        table.append(_figures(columns, label, value, metric_text, way, _change))
    table.append(_words("trained for", columns, _periods))
    table += [_figures(columns, *spec) for spec in _quantities(runs)]
    table.append(_words("target", columns, _target_text))
    table.append(_words("privacy", columns, privacy_text))
    table.append(_words("simulated attack", columns, _attack_text))
    if any(run.of_kind("failure") for run in runs):
        table.append(_figures(columns, "failures", _failures, count_text))
    return [row for row in table if set(row.cells) != {UNKNOWN}]


def order_metrics(names: Iterable[str]) -> list[str]:
    """Return names with test before validation before train, each split's in the order given."""
    splits = {"test": 0, "validation": 1, "train": 2}
    return sorted(dict.fromkeys(names), key=lambda name: splits.get(name.partition("/")[0], 3))


def target(run: RunRecord) -> Target | None:
    """Return the run's target: as its result says, else as its config and curve say."""
    said = run.detail("target")
    if said is not None:
        value = number(said.get("value"))
        if value is None or not said.get("metric"):
            return None
        period = said.get("rounds", said.get("epochs"))
        return Target(
            metric=str(said["metric"]),
            value=value,
            lower=run.direction(str(said["metric"])) == "min",
            reached=bool(said.get("reached")),
            period=number(period),
            examples=number(said.get("examples_seen")),
            seconds=number(said.get("seconds")),
        )
    wanted = run.config.get("target")
    value = number(wanted.get("value")) if isinstance(wanted, dict) else None
    if value is None or not isinstance(wanted, dict) or not wanted.get("metric"):
        return None
    return _reached(run, str(wanted["metric"]), value)


def privacy_text(run: RunRecord) -> str:
    """Return `ε = 3.1, δ = 1e-05, per client`, or plainly that nothing is guaranteed."""
    said = run.detail("privacy")
    if said is None:
        return NO_PRIVACY if run.result is not None else f"{NO_PRIVACY} recorded"
    epsilon, delta = number(said.get("epsilon")), number(said.get("delta"))
    if epsilon is None or not math.isfinite(epsilon):
        return f"{NO_PRIVACY} (ε is not finite)"
    text = f"ε = {epsilon:.4g}"
    text += f", δ = {delta:.3g}" if delta is not None else ""
    return f"{text}, per {said['unit']}" if said.get("unit") else text


def _attack_text(run: RunRecord) -> str:
    """Return `label_flip by 3 clients`, with its numbers; a dash where nobody attacks."""
    said = run.detail("attack") or next(
        (e["attack"] for e in run.of_kind("start") if isinstance(e.get("attack"), Mapping)), None
    )
    if said is None:
        return UNKNOWN
    clients = said.get("clients")
    count = len(clients) if isinstance(clients, list) else clients
    others = {k: v for k, v in said.items() if k not in ("name", "clients", "simulated")}
    keys = ", ".join(f"{key} {value}" for key, value in others.items())
    return f"{said.get('name', 'unknown')} by {count} client(s)" + (f" ({keys})" if keys else "")


def _reached(run: RunRecord, metric: str, value: float) -> Target:
    lower = run.direction(metric) == "min"
    for examples, score in run.curve(metric, "examples_seen"):
        if score <= value if lower else score >= value:
            return Target(metric, value, lower, True, examples=examples)
    return Target(metric, value, lower, False)


def _target_text(run: RunRecord) -> str:
    goal = target(run)
    if goal is None:
        return "none set"
    if not goal.reached:
        return f"{goal.goal}: not reached"
    unit = "rounds" if run.mode == "federated" else "epochs"
    after = [f"{goal.period:g} {unit}"] if goal.period is not None else []
    after += [seconds_text(goal.seconds)] if goal.seconds is not None else []
    after = after or ([f"{count_text(goal.examples)} examples"] if goal.examples else [])
    return f"{goal.goal}: reached" + (f" after {', '.join(after)}" if after else "")


def _periods(run: RunRecord) -> str:
    for key in ("rounds", "epochs"):
        count = run.quantity(key)
        if count is not None:
            return f"{count:,.0f} {key if count != 1 else key[:-1]}"
    return UNKNOWN


_Value = Callable[[RunRecord], "float | None"]
_Spec = tuple[
    str,
    _Value,
    Callable[[float], str],
    str | None,
    "Callable[[float, float], str] | None",
]


def _quantities(runs: Sequence[RunRecord]) -> list[_Spec]:
    def of(key: str) -> _Value:
        return lambda run: run.quantity(key)

    # A run cut short is not the cheapest one.
    ended = all(run.status == "completed" for run in runs)
    low, high = ("min", "max") if ended else (None, None)
    return [
        ("steps", of("steps"), count_text, None, None),
        ("examples seen", of("examples_seen"), count_text, None, _ratio),
        ("wall time", of("wall_seconds"), seconds_text, low, _ratio),
        ("training time", of("train_seconds"), seconds_text, low, _ratio),
        ("startup time", of("startup_seconds"), seconds_text, None, None),
        ("examples/s", of("examples_per_second"), rate_text, high, _ratio),
        ("bytes exchanged", lambda run: run.bytes_exchanged, bytes_text, low, _ratio),
        ("bytes up", of("bytes_up"), bytes_text, None, None),
        ("bytes down", of("bytes_down"), bytes_text, None, None),
        ("peak memory", of("peak_rss_bytes"), bytes_text, None, _ratio),
        ("parameters", of("parameters"), count_text, None, None),
    ]


def _metric(run: RunRecord, name: str) -> float | None:
    return run.metrics.get(name)


def _failures(run: RunRecord) -> float:
    return float(len(run.of_kind("failure")))


def _words(label: str, columns: Sequence[Replicates], said: Callable[[RunRecord], str]) -> Row:
    cells = ["; ".join(dict.fromkeys(map(said, column.runs))) for column in columns]
    return Row(label, cells, [""] * len(cells))


def _figures(
    columns: Sequence[Replicates],
    label: str,
    value: _Value,
    text: Callable[[float], str],
    direction: str | None = None,
    against: Callable[[float, float], str] | None = None,
) -> Row:
    found = [Average.of([value(run) for run in column.runs]) for column in columns]
    cells = [UNKNOWN if average is None else average.text(text) for average in found]
    means = [None if average is None else average.mean for average in found]
    first = means[0]
    notes = [""] * len(cells)
    if against is not None and first is not None:
        notes[1:] = ["" if mean is None else against(mean, first) for mean in means[1:]]
    known = [mean for mean in means if mean is not None and math.isfinite(mean)]
    best: frozenset[int] = frozenset()
    if direction and len(set(known)) > 1:
        wanted = min(known) if direction == "min" else max(known)
        best = frozenset(i for i, mean in enumerate(means) if mean == wanted)
    return Row(label, cells, notes, best)


def _change(value: float, first: float) -> str:
    change = value - first
    return f"{change:+.4f}".replace("-", MINUS) if math.isfinite(change) and change else ""


def _ratio(value: float, first: float) -> str:
    ratio = value / first if first > 0 and math.isfinite(first) else 0
    if not ratio or not math.isfinite(ratio) or value == first:
        return ""
    return f"{TIMES}{ratio:,.0f}" if ratio >= 100 else f"{TIMES}{ratio:.{2 if ratio < 10 else 3}g}"
