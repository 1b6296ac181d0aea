"""`load`: from a composed config to a checked `Run`, and back from a run's config.yaml.

Values live in `conf/` (YAML); types live beside this file. A config is converted once, at the
entrypoint, into a plain `Run`; nothing below sees a `DictConfig`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from heliotrope import plugin_loading, registry
from heliotrope.config.checks.run import check
from heliotrope.config.distributed import DistributedConfig
from heliotrope.config.federated import FederatedConfig
from heliotrope.config.groups import (
    GROUPS,
    OPTIONAL,
    choice_class,
    choice_names,
    chosen_of,
    source_of,
)
from heliotrope.config.own_files import make_absolute
from heliotrope.config.run import Mode, Run
from heliotrope.config.search import SearchConfig
from heliotrope.config.tracking_uri import absolute_uri
from heliotrope.config.workers import worker_range
from heliotrope.config.written import refuse_blown_up, refuse_interpolations
from heliotrope.errors import ConfigError
from heliotrope.registry import Group, Source

__all__ = ["from_resolved", "from_yaml", "load", "without_hydra"]

# What OmegaConf and we make of a text that is no config: a number alone is an AssertionError.
_NO_CONFIG = (
    *(OmegaConfBaseException, YAMLError, ValueError, TypeError, LookupError),
    *(AttributeError, AssertionError, RecursionError),
)


def load(cfg: DictConfig, mode: Mode, *, trial: bool = False) -> Run:
    """Convert a composed config into a checked `Run`, perhaps a `trial` of a search.

    Raises `ConfigError` naming the key, its value and the remedy.
    """
    run = cast(Run, OmegaConf.to_object(cfg))
    run.plugins = _recorded(run)
    if run.tracking.mlflow is not None:  # relative to where the command is typed
        run.tracking.mlflow = absolute_uri(run.tracking.mlflow)
    make_absolute(run)
    check(run, mode)
    if run.search is not None:  # their number may grow, and is no trial's
        run.search = replace(run.search, trials=None) if trial else None
    if mode == "distributed":
        fewest, most = worker_range(run.distributed.workers)
        if fewest == most:  # [2,2] is no range
            run.distributed.workers = most
    return run


def without_hydra(composed: DictConfig) -> DictConfig:
    """Return a copy of what Hydra has composed without its own part, as jobs are given it."""
    copied = copy.deepcopy(composed)
    with open_dict(copied):
        del copied["hydra"]
    return copied


def _recorded(run: Run) -> list[dict[str, str]]:
    """Return what is recorded of the plug-ins that are named, and of those installed in use."""
    named: list[Source] = []
    for written in run.plugins:
        source = plugin_loading.named(str(written))
        if source is None:
            raise ConfigError(
                f"plugins={run.plugins}: {written} must be named on the command line, or in the "
                "file of the experiment."
            )
        named.append(source)
    used = [source for source in plugin_loading.loaded() if source in set(_sources_of(run))]
    return [source.entry() for source in dict.fromkeys([*named, *used])]


def _sources_of(run: Run) -> Iterator[Source]:
    """Yield the plug-ins that the choices of a run are of."""
    for group in GROUPS:
        choice = chosen_of(run, group)
        if choice is not None and (source := source_of(group, choice.name)) is not None:
            yield source
    others: dict[Group, list[str]] = {
        "metric": run.metrics,
        "schedule": [run.distributed.lr_schedule, run.federated.lr_schedule],
    }
    for kind, names in others.items():
        yield from (e.source for e in registry.plug_ins(kind) if e.name in names and e.source)


def from_resolved(path: Path, *, trusted: bool = False, with_plugins: bool = True) -> Run:
    """Read back the resolved `config.yaml` of a run directory, typed, without Hydra.

    Its plug-ins are loaded `with_plugins`: see `heliotrope.plugin_loading.recall`, also for
    `trusted`. Raises `ConfigError` naming `path` if it cannot be read or is no such config.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    return from_yaml(text, str(path), trusted=trusted, with_plugins=with_plugins)


def from_yaml(
    text: str, source: str = "config", *, trusted: bool = False, with_plugins: bool = True
) -> Run:
    """Return the `Run` that a resolved YAML text holds.

    Raises `ConfigError` naming `source` if it is none of this version's, or its plug-ins cannot
    be loaded.
    """
    try:
        refuse_blown_up(text, source)
        values = OmegaConf.create(text)
        refuse_interpolations(values, source)
        if with_plugins and isinstance(values, DictConfig):
            plugin_loading.recall(values.get("plugins") or (), source, trusted=trusted)
        return _typed(values, source)
    except _NO_CONFIG as error:
        raise ConfigError(
            f"{source} is not the config of a run of this version: {' '.join(str(error).split())}."
        ) from error


def _typed(values: object, source: str) -> Run:
    if not isinstance(values, DictConfig):
        raise ConfigError(f"{source} is not the config of a run: it holds no keys and values.")
    typed = OmegaConf.structured(Run)
    typed.distributed = OmegaConf.structured(DistributedConfig)
    typed.federated = OmegaConf.structured(FederatedConfig)
    typed.search = OmegaConf.structured(SearchConfig)
    for group in GROUPS:
        key = group.replace("/", ".")
        name = OmegaConf.select(values, f"{key}.name")
        if name is None and group in OPTIONAL:
            continue
        if name not in choice_names(group):
            raise ConfigError(f"{source}: {key}.name={name} is not known to this version.")
        OmegaConf.update(typed, key, OmegaConf.structured(choice_class(group, name)), merge=False)
    return cast(Run, OmegaConf.to_object(OmegaConf.merge(typed, values)))
