"""What sets a run apart: its overrides, or the keys in which runs of its experiment differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import get_args

from heliotrope.config import Mode
from heliotrope.runs.config_values import MISSING, at, differing
from heliotrope.runs.finding import FOREIGN, FoundRun

__all__ = ["as_typed", "changed_keys"]

_MOST = 6  # keys that are told of a run
_OF_THE_COMMAND = ("experiment", "resume")  # overrides that change nothing of what is trained


def changed_keys(found: Sequence[FoundRun]) -> dict[int, str]:
    """Return by run (its `id`) the keys that set it apart, with their values.

    Those are the overrides that it was started with, where its directory holds them; otherwise
    the keys in which the runs of its experiment and mode differ.
    """
    groups: dict[tuple[str, str], list[FoundRun]] = {}
    texts: dict[int, str] = {}
    for run in found:
        if run.overrides is not None:
            texts[id(run)] = _shortened(list(_typed(run.overrides)))
        elif run.config and run.state != FOREIGN:
            groups.setdefault((run.experiment, run.mode), []).append(run)
    for (_, mode), runs in groups.items():
        others = tuple(f"{other}." for other in get_args(Mode) if mode and other != mode)
        configs = list({id(run.config): run.config for run in runs}.values())
        keys = [k for k in differing(configs) if k != "resume" and not k.startswith(others)]
        for run in runs:
            pairs = [(key, at(run.config, key)) for key in keys]
            told = [
                f"{key.removesuffix('.name')}={as_typed(value)}"
                for key, value in pairs
                if value is not MISSING
            ]
            texts[id(run)] = _shortened(told)
    return texts


def as_typed(value: object) -> str:
    """Return a value of a configuration or a result as one types it."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), default=str, ensure_ascii=False)


def _typed(overrides: Sequence[str]) -> Iterator[str]:
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key not in _OF_THE_COMMAND and not key.startswith(("hydra.", "hydra/", "sweep.")):
            yield override


def _shortened(told: Sequence[str]) -> str:
    more = [f"and {len(told) - _MOST} more"] if len(told) > _MOST else []
    return " ".join([*told[:_MOST], *more])
