"""result.json: what a finished run says of itself, in one schema for both modes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from heliotrope.config import Mode, Run, TargetConfig
from heliotrope.metrics import Direction
from heliotrope.metrics.chosen import lower_is_better
from heliotrope.runs.clock import Clock
from heliotrope.runs.directory import git_commit, versions
from heliotrope.runs.events import Progress
from heliotrope.runs.pruning import Pruning
from heliotrope.system.resources import machine

__all__ = ["Outcome", "Target", "result_of"]


@dataclass
class Target:
    """Watches the evaluations: keeps the first moment at which one metric was good enough.

    `directions` are those of the task's metrics. A run also ends where `pruning`, of a trial of a
    search, gives it up.
    """

    cfg: TargetConfig
    directions: Mapping[str, Direction]
    pruning: Pruning | None = None
    hit: dict[str, Any] | None = None

    def observe(
        self, values: Mapping[str, float], unit: Mapping[str, int], counts: Progress, clock: Clock
    ) -> bool:
        """Take in an evaluation; True if the run should stop here."""
        metric, wanted = self.cfg.metric, self.cfg.value
        (name, number), *_ = unit.items()
        if self.pruning is not None:
            self.pruning.observe(values, number)
        if metric is not None and wanted is not None and self.hit is None and metric in values:
            value = values[metric]
            lower = lower_is_better(metric, self.directions)
            if value <= wanted if lower else value >= wanted:
                self.hit = {
                    f"{name}s": number,
                    "examples_seen": counts.examples_seen,
                    "seconds": round(clock.seconds, 3),
                }
        return self.stop

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        pruning = None if self.pruning is None else self.pruning.saved()
        watched = {"metric": self.cfg.metric, "value": self.cfg.value, "hit": self.hit}
        return {**watched, "pruning": pruning}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what `saved` gave, unless the target has been changed since."""
        if (saved["metric"], saved["value"]) == (self.cfg.metric, self.cfg.value):
            self.hit = saved["hit"]
        if self.pruning is not None and saved.get("pruning") is not None:
            self.pruning.restore(saved["pruning"])

    @property
    def pruned(self) -> bool:
        """Whether the run is given up, since other trials of its search did better."""
        return self.pruning is not None and self.pruning.pruned and not self._reached

    @property
    def stop(self) -> bool:
        """Whether the run is to end here: the target has been reached, or it is given up."""
        return self._reached or self.pruned

    @property
    def _reached(self) -> bool:
        return self.hit is not None and self.cfg.stop

    def summary(self) -> dict[str, Any] | None:
        """Return what result.json holds under `target`, or None without a target."""
        if self.cfg.metric is None:
            return None
        return {
            "metric": self.cfg.metric,
            "value": self.cfg.value,
            "reached": self.hit is not None,
            **(self.hit or {}),
        }


@dataclass
class Outcome:
    """What a mode hands over when training is done.

    Parameters
    ----------
    metrics
        The final ones, `SPLIT/NAME` by name; given, those beside the splits'.
    unit
        {"rounds": n} or {"epochs": n}.
    counts, clock
        What the run took, all of its attempts together.
    startup_seconds
        From its start to its first step or round.
    parameters
        Numbers in the model's weights.
    peak_rss_bytes
        The largest memory of all processes together.
    target
        Whether and when the target was reached; None without one.
    preparation
        What clients told so that all prepare their data alike, and the bytes of it, which are
        among those of `counts`.
    canaries
        How many were planted among those who train, and took part; None if none were.
    packages
        Those whose versions are written down beside the usual ones.
    directions
        Of each metric of a split, which way is better.
    privacy
        What was promised and spent; None if nothing was.
    attack
        Which attackers were simulated; None if none were.
    secure_aggregation
        How updates were kept from the server; None if they were not.
    pruned
        Whether a search has given the run up before its end.
    """

    metrics: Mapping[str, float]
    unit: Mapping[str, int]
    counts: Progress
    clock: Clock
    startup_seconds: float
    parameters: int
    peak_rss_bytes: int
    target: dict[str, Any] | None
    preparation: Mapping[str, Any] | None = None
    privacy: Mapping[str, Any] | None = None
    attack: Mapping[str, Any] | None = None
    canaries: Mapping[str, Any] | None = None
    secure_aggregation: Mapping[str, Any] | None = None
    pruned: bool = False
    packages: tuple[str, ...] = field(default_factory=tuple)
    directions: Mapping[str, Direction] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """How the run ended: `completed` or `pruned`."""
        return "pruned" if self.pruned else "completed"


def result_of(run: Run, mode: Mode, outcome: Outcome) -> dict[str, Any]:
    """Return the content of result.json.

    Seconds are wall-clock: `wall_seconds` over all attempts, `train_seconds` over the steps that
    count (those that a failed attempt lost do not), `startup_seconds` from process start, or from
    the end of the attempt before, to the first training step of the last attempt. Bytes are what
    a real exchange between the participants carries (model arrays or gradients).
    """
    train = outcome.clock.train_seconds
    result: dict[str, Any] = {
        "schema": 1,
        "mode": mode,
        "experiment": run.name,
        "seed": run.seed,
        "status": outcome.status,
        "metrics": dict(outcome.metrics),
        "directions": dict(outcome.directions),
        **outcome.unit,
        **asdict(outcome.counts),
        "wall_seconds": round(outcome.clock.seconds, 3),
        "train_seconds": round(train, 3),
        "startup_seconds": round(outcome.startup_seconds, 3),
        "examples_per_second": round(outcome.counts.examples_seen / train, 1) if train else None,
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "privacy": outcome.privacy,
        "parameters": outcome.parameters,
        "machine": machine(),
        "versions": versions(*outcome.packages),
        "git_commit": git_commit(),
    }
    if outcome.target is not None:
        result["target"] = outcome.target
    if outcome.attack is not None:
        result["attack"] = dict(outcome.attack)
    if outcome.canaries is not None:
        result["canaries"] = dict(outcome.canaries)
    if outcome.secure_aggregation is not None:
        result["secure_aggregation"] = dict(outcome.secure_aggregation)
    if outcome.preparation is not None:
        result["preparation"] = dict(outcome.preparation)
    return result
