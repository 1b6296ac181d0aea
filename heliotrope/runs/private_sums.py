"""What the sums depend on that a private run adds noise to: whose noise must not be used twice.

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

__all__ = ["settings_of_sums"]

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
        if key not in without_effect and not key.startswith((f"{other}.", "cluster.", "privacy."))
    }
    return {**found, "horizon": horizon_of(run, mode).length}
