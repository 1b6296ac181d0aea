"""A trial of a search: the values that it was given, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from heliotrope.runs.pruning import PruningRule
from heliotrope.search.space import Value

__all__ = ["Ended", "Trial"]

State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Ended:
    """How a trial ended.

    Parameters
    ----------
    state
        `complete`, `pruned` or `failed`.
    metric, lower
        What it is judged by, and whether less of it is better; None if it has no evaluation.
    value
        Of that metric, at the end: finite of a trial that is complete.
    curve
        The metric by epoch or round, as far as it went.
    """

    state: State
    metric: str | None = None
    lower: bool | None = None
    value: float | None = None
    curve: Mapping[int, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return all of it for JSON; what is not finite is null."""
        curve = {str(step): _finite(value) for step, value in self.curve.items()}
        return {**vars(self), "value": _finite(self.value), "curve": curve}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Ended:
        """Undo `to_json`; what was not finite is NaN."""
        curve = {int(step): _number(value) for step, value in fields["curve"].items()}
        if fields["state"] not in ("complete", "pruned", "failed"):
            raise ValueError(f"{fields['state']} is no state of a trial")
        return cls(fields["state"], fields["metric"], fields["lower"], fields["value"], curve)


@dataclass(frozen=True)
class Trial:
    """A trial: its number, the values of the keys that are searched, and how it ended, if it has.

    `rule` says when it is given up; None: never.
    """

    number: int
    values: Mapping[str, Value]
    rule: PruningRule | None = None
    ended: Ended | None = None


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
