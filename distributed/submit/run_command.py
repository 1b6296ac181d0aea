"""What stands after the `--` of `heliotrope submit`: any of our commands, checked here.

A run's directory is fixed before it is sent, so that the same words, sent again, continue it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser  # not public: Hydra has no other list of flags
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from heliotrope import config, plugin_loading
from heliotrope.cli import VERBS, register_resolvers
from heliotrope.commands.overrides import checked, prepared
from heliotrope.config import ClusterConfig, Mode
from heliotrope.config.explain import composing
from heliotrope.config.own_files import KEYS, OWN_FILES
from heliotrope.errors import ConfigError, closest
from heliotrope.shell import quoted

from .base import Command

__all__ = ["command_of"]

_PROGRAMS = ("heliotrope", "python", "python3")  # what one types before a command elsewhere
_DIRECTORIES = ("hydra.run.dir", "hydra.sweep.dir")


def command_of(words: Sequence[str]) -> Command:
    """Return the command that `words` are; `ConfigError` if it could not be run."""
    if not words:
        raise ConfigError(
            "submit needs a command after --, such as submit cluster=local -- federated "
            "experiment=quickstart."
        )
    verb, *arguments = words
    known = [each for each in VERBS if each not in ("submit", "mirror")]
    if verb in _PROGRAMS:
        raise ConfigError(
            f"submit runs commands of heliotrope, and {verb} is none. Write the command alone, "
            "such as: -- federated experiment=quickstart."
        )
    if verb not in known:
        raise ConfigError(
            f"submit: {verb} is not one of the commands {', '.join(known)}.{closest(verb, known)}"
        )
    for mode in get_args(Mode):
        if verb == mode:
            return _run(mode, arguments)
    config.load_plugins(arguments)
    return Command(tuple(words), None, tuple(plugin_loading.loaded()))


def _run(mode: Mode, arguments: list[str]) -> Command:
    """Return the command of a mode, with its directory named and resume=true."""
    with _as_typed(mode, arguments):
        config.register_for(arguments)
        register_resolvers(mode)
        prepared(arguments)  # refuses flags that there are not
        flags = get_args_parser().parse_known_intermixed_args(arguments)[0]
        if flags.cfg or flags.info or flags.help or flags.hydra_help:
            return Command((mode, *arguments), None, tuple(plugin_loading.loaded()))
        sweeping = flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides
        overrides = checked(flags.overrides, sweeping=sweeping)
        if flags.config_dir:
            overrides.append(f"hydra.searchpath=[{quoted(str(Path(flags.config_dir).resolve()))}]")
        with composing():
            composed = _composed(overrides, RunMode.MULTIRUN if sweeping else RunMode.RUN)
            directory = Path((composed.hydra.sweep if sweeping else composed.hydra.run).dir)
            cluster = OmegaConf.to_object(composed.cluster)
            assert isinstance(cluster, ClusterConfig)
            if not sweeping:  # a job of a sweep has choices that others have not
                config.load(config.without_hydra(composed), mode)
            paths = _own_paths(composed)
    directory = directory.absolute()
    kept = [word for word in arguments if word.partition("=")[0] not in (*_DIRECTORIES, "resume")]
    named = f"{_DIRECTORIES[sweeping]}={quoted(str(directory))}"
    plugins = tuple(plugin_loading.loaded())
    return Command((mode, *kept, named, "resume=true"), directory, plugins, paths, cluster)


def _own_paths(composed: DictConfig) -> dict[str, Path]:
    """Return the user's own files by key; of a sweep, those that it does not go over."""
    keys = ["privacy.ledger"]
    if OmegaConf.select(composed, "data.name") in OWN_FILES:
        keys += [f"data.{key}" for key in KEYS]
    found = {key: OmegaConf.select(composed, key) for key in keys}
    return {key: Path(path).resolve() for key, path in found.items() if path}


def _composed(overrides: list[str], mode: RunMode) -> DictConfig:
    """Return the configuration with Hydra's own part; of a sweep, without what it goes over."""
    with initialize_config_dir(config_dir=str(config.conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        return hydra.compose_config("config", overrides, run_mode=mode, from_shell=False)


@contextmanager
def _as_typed(mode: Mode, arguments: Sequence[str]) -> Iterator[None]:
    """Let errors be explained by the words of the command that is submitted."""
    before = sys.argv
    sys.argv = [f"heliotrope {mode}", *arguments]
    try:
        yield
    finally:
        sys.argv = before
