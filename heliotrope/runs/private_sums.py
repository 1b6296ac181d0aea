"""What the sums of a private run depend on, and what decides which of its models is released.

Noise follows from a run's seed, so that a run repeats itself. If a run of other settings added the
same noise to other sums, the difference of what both release would have no noise at all, whatever
each of them says of its epsilon.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from heliotrope.config import Mode, Run
from heliotrope.config.horizon import horizon_of
from heliotrope.runs.directory import MAY_CHANGE, flat

__all__ = ["decided_by", "settings_of_sums"]

_CHANGE_SUMS = {"plugins", "device", "data.dir"}  # of what may change in a run that goes on
# What changes no sum, or by rounding only: how clients are trained, evaluated and told of.
_CHANGE_NOTHING = {
    "name",
    "metrics",
    "distributed.evaluate_every",
    "federated.client_rows_every",
    "federated.client_training",
    "federated.evaluate_clients",
    "federated.evaluate_every",
    "federated.evaluate_fraction",
    "federated.lanes",
    "federated.reduce",
    "federated.stack_size",
}

_OF_NO_SUM = ("cluster.", "privacy.", "search")


def settings_of_sums(run: Run, mode: Mode) -> dict[str, Any]:
    """Return the settings that sums may depend on beyond rounding, by key.

    A round or step that is done again under the same settings, and whose noise is as strong, gives
    the same sum; then the same noise tells nothing new.
    """
    other = "federated" if mode == "distributed" else "distributed"
    without_effect = (MAY_CHANGE - _CHANGE_SUMS) | _CHANGE_NOTHING
    found = {
        key: value
        for key, value in flat(asdict(run)).items()
        if key not in without_effect and not key.startswith((f"{other}.", *_OF_NO_SUM))
    }
    return {**found, "horizon": horizon_of(run, mode).length}


def decided_by(run: Run, mode: Mode) -> list[str]:
    """Return what a promise depends on where evaluations decide what is released, a sentence each.

    They have no noise: when a run ends, or which of its models are kept, tells of the examples
    that are evaluated.
    """
    cfg, decides = run.distributed, {}
    if run.target.stop:
        decides["target.metric", "when the run ends"] = run.target.metric
    if mode == "distributed":
        early = ("distributed.early_stopping.metric", "when the run ends")
        decides[early] = cfg.early_stopping.metric
        decides["distributed.best_metric", "which models are kept"] = cfg.best_metric
    told = [
        f"{key}={metric} decides {what}, without noise: the examples of the "
        f"{metric.partition('/')[0]} split are not protected"
        for (key, what), metric in decides.items()
        if metric is not None
    ]
    if run.search is not None:
        told.append(
            f"search.metric={run.search.metric or 'null'} of earlier trials decides the settings "
            "of this run, and perhaps when it ends, without noise: the examples of its split are "
            "not protected"
        )
    return told
