"""`check`: what types cannot say of a whole run, such as allowed names, ranges and relations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from heliotrope import registry
from heliotrope.config.checks.distributed import check_distributed
from heliotrope.config.checks.federated import check_federated
from heliotrope.config.checks.search import check_search
from heliotrope.config.checks.shared import check_project, check_shared, check_tracking
from heliotrope.config.checks.values import one_of
from heliotrope.config.groups import (
    GROUPS,
    OPTIONAL,
    choice_class,
    choice_names,
    chosen_of,
    defaults_of,
)
from heliotrope.config.keys import unknown_key
from heliotrope.config.names import plain_name
from heliotrope.config.run import Mode, Run
from heliotrope.config.sweep import check_sweep
from heliotrope.errors import ConfigError, closest

__all__ = ["check"]


def check(run: Run, mode: Mode) -> None:
    """Check what types cannot: allowed names, ranges and relations between fields.

    Raises `ConfigError`. Only what `mode` uses is checked.
    """
    _check_keys(run, "")
    for group in GROUPS:
        _check_name(run, group)
    _check_metrics(run.metrics)
    one_of("plugins_changed", run.plugins_changed, ("refuse", "accept"))
    plain_name(run.name)
    check_sweep(run.sweep)
    check_search(run.search)
    check_shared(run)
    check_tracking(run.tracking)
    protection = run.distributed.privacy if mode == "distributed" else run.federated.privacy
    check_project(run.privacy, mode, protection.name)
    if mode == "distributed":
        if run.data.fit == "per_client":
            raise ConfigError(
                "data.fit=per_client needs clients, and distributed training has none. Set "
                "data.fit=training."
            )
        check_distributed(run)
    else:
        check_federated(run)


def _check_metrics(names: Sequence[str]) -> None:
    """Refuse a metric that there is not, and one of a plug-in that needs what nothing can set."""
    known = registry.names("metric")
    for name in names:
        if name not in known:
            raise ConfigError(
                f"metrics={list(names)}: {name} is not one of {', '.join(known)}."
                f"{closest(name, known)}"
            )
        defaults_of(registry.entry("metric", name))


def _check_keys(node: Any, path: str) -> None:
    """Refuse keys that no schema has (`+model.hiden=3` gets past Hydra), NaN and infinity."""
    known = [item.name for item in fields(node)]
    for name, value in vars(node).items():
        key = f"{path}{name}"
        if name not in known:
            raise ConfigError(unknown_key(key, value))
        if is_dataclass(value):
            _check_keys(value, f"{key}.")
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{key}={value} is not a finite number. Set one.")


def _check_name(run: Run, group: str) -> None:
    """Refuse `model.name=cnn` instead of `model=cnn`: a name beside another's keys."""
    chosen = chosen_of(run, group)
    if chosen is None and group in OPTIONAL:
        return
    key, name = f"{group.replace('/', '.')}.name", chosen.name
    one_of(key, name, tuple(choice_names(group)))
    if choice_class(group, name) is not type(chosen):
        raise ConfigError(f"{key}={name} does not bring the keys of {name}. Set {group}={name}.")
