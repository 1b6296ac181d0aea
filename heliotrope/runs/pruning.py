"""When a trial of a search is given up: its evaluations, beside what other trials reached."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heliotrope.errors import RunDirectoryError, writing
from heliotrope.system.durable import write_whole

__all__ = ["PRUNING", "Pruning", "PruningRule"]

PRUNING = "pruning.json"
"""What a search leaves in the directory of a trial that may be given up."""


@dataclass(frozen=True)
class PruningRule:
    """What a trial must reach by when. It is settled before the trial begins.

    So it needs no other process while it trains: all ranks decide alike, and a trial that goes on
    after an interruption is pruned exactly if it would have been without.

    Parameters
    ----------
    metric
        `SPLIT/NAME`.
    lower
        Whether less of it is better.
    limits
        By epoch or round: the value that must be reached at its evaluation, or the next one.
    best
        Whether the best value so far is compared; otherwise the latest one is.
    """

    metric: str
    lower: bool
    limits: Mapping[int, float]
    best: bool

    def reaches(self, value: float, limit: float) -> bool:
        """Return whether a value is as good as a limit, or better; NaN never is."""
        return value <= limit if self.lower else value >= limit

    def write(self, directory: Path) -> None:
        """Leave the rule in the directory of a trial, durably."""
        directory.mkdir(parents=True, exist_ok=True)
        with writing(directory / PRUNING):
            write_whole(directory / PRUNING, json.dumps(self.to_json()).encode())

    @classmethod
    def read(cls, directory: Path) -> PruningRule | None:
        """Return the rule of the run in a directory; None of one that runs to its end.

        Raises `RunDirectoryError` if the file is damaged.
        """
        path = directory / PRUNING
        try:
            return cls.from_json(json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise RunDirectoryError(
                f"{path} is no rule of a search: {error}. Remove it to train the trial to its end."
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> PruningRule:
        """Undo `to_json`."""
        limits = {int(at): float(limit) for at, limit in fields["limits"].items()}
        return cls(str(fields["metric"]), bool(fields["lower"]), limits, bool(fields["best"]))


class Pruning:
    """Watches the evaluations of a trial; `pruned` once it is to be given up.

    Parameters
    ----------
    rule
        What it must reach; None: it is never given up.
    last
        The epoch or round at which it is complete, and no longer given up.
    """

    def __init__(self, rule: PruningRule | None, last: int) -> None:
        self._rule, self._last = rule, last
        self._step = 0
        self._best: float | None = None
        self.pruned = False

    def observe(self, values: Mapping[str, float], step: int) -> bool:
        """Take in the evaluation after an epoch or round; True if the trial is given up there."""
        rule = self._rule
        if rule is None or rule.metric not in values:
            return self.pruned
        value = values[rule.metric]
        if math.isfinite(value) and (self._best is None or rule.reaches(value, self._best)):
            self._best = value
        judged = self._best if rule.best else value
        due = [limit for at, limit in rule.limits.items() if self._step < at <= step]
        if step < self._last and due:
            self.pruned = judged is None or not all(rule.reaches(judged, x) for x in due)
        self._step = step
        return self.pruned

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"step": self._step, "best": self._best, "pruned": self.pruned}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what `saved` gave; a run without a rule goes on, whatever it was."""
        if self._rule is not None:
            self._step, self._best = int(saved["step"]), saved["best"]
            self.pruned = bool(saved["pruned"])
