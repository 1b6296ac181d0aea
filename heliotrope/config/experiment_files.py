"""Experiments of a user's own: `experiment=path/to/mine.yaml`, and the plug-ins that they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml  # type: ignore[import-untyped]
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from heliotrope import plugin_loading
from heliotrope.config.files import (
    chosen_files,
    experiment_files,
    in_file,
    keys_in_experiments,
    named_experiment,
    own_experiment,
)
from heliotrope.config.own_files import from_folder_of
from heliotrope.config.schemas import register
from heliotrope.config.written import refuse_blown_up
from heliotrope.errors import ConfigError

__all__ = ["left_out", "load_plugins", "register_for"]

_GROUP = "experiment/"


class OwnExperiments(ConfigSource):
    """Gives Hydra the file that `experiment=path/to/mine.yaml` names.

    And that of any experiment, without the keys that `left_out` names: a choice that a command line
    swaps may have others.
    """

    left_out: ClassVar[list[str]] = []

    @staticmethod
    def scheme() -> str:
        return "own-experiments"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the file's content, with paths in it counted from its folder."""
        path = self._file_of(config_path)
        assert path is not None, "Hydra asks for what is_config has found"
        with path.open(encoding="utf-8") as file:
            header = self._get_header_dict(file.read(512))
            file.seek(0)
            config = OmegaConf.load(file)
        if own_experiment(config_path.removeprefix(_GROUP)) is not None:
            from_folder_of(path, config)
        for key in self.left_out:
            _leave_out(config, key)
        return ConfigResult(self.provider, self.full_path(), config, header)

    def is_group(self, config_path: str) -> bool:  # noqa: ARG002
        """Return False: a file is no folder of choices."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Return whether `config_path` is the group `experiment` and the path of a file.

        Or the name of one, if anything is left out of it.
        """
        return config_path.startswith(_GROUP) and self._file_of(config_path) is not None

    def _file_of(self, config_path: str) -> Path | None:
        name = config_path.removeprefix(_GROUP)
        return named_experiment(name) if self.left_out else own_experiment(name)

    def available(self) -> bool:
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:  # noqa: ARG002
        return []


def _leave_out(config: Any, key: str) -> None:
    """Take a dotted key out of a config, in place, if it is there."""
    *parents, last = key.split(".")
    for part in parents:
        config = config.get(part) if isinstance(config, DictConfig) else None
    if isinstance(config, DictConfig):
        config.pop(last, None)


def left_out(arguments: Sequence[str]) -> list[str]:
    """Return the overrides `~KEY` of keys that an experiment of the command line sets."""
    found = []
    for argument in arguments:
        group, _, key = argument.removeprefix("~").rpartition(".")
        if argument.startswith("~") and group:
            in_files = keys_in_experiments(group.replace(".", "/"), arguments)
            found += [argument] if key in in_files else []
    return found


class _SearchPath(SearchPathPlugin):
    """Puts the source above before the folders of Hydra's configuration."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.prepend("experiment=PATH", f"{OwnExperiments.scheme()}://")


def register_for(arguments: Sequence[str]) -> None:
    """Make Hydra know what a command line names: our schemas, its plug-ins, its experiments.

    Raises `ConfigError` if a plug-in or an experiment is missing, or a plug-in fails.
    """
    try:
        for path in chosen_files(arguments):
            refuse_blown_up(path.read_text(), path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        pass  # as Hydra will say when it reads the file
    except RecursionError as error:
        raise ConfigError("The file of an experiment nests too deeply.") from error
    load_plugins(arguments)
    register()
    OwnExperiments.left_out = [override.removeprefix("~") for override in left_out(arguments)]
    for kind in (OwnExperiments, _SearchPath):
        Plugins.instance().register(kind)  # once, however often


def load_plugins(arguments: Sequence[str]) -> None:
    """Load the plug-ins of a command line: those that are installed, and those that are named.

    Where it has no `plugins=[...]`, what its experiments say counts, whose relative paths count
    from their own folder. Raises `ConfigError` if one is missing or fails.
    """
    plugin_loading.load_installed()
    names = plugin_loading.named_in(arguments)
    if names is not None:
        plugin_loading.load(names)
        return
    for path in experiment_files(arguments):
        if names := _named_by(path):
            plugin_loading.load(names, path.parent, in_file(path, "plugins"))


def _named_by(path: Path) -> list[str]:
    """Return the plug-ins that the file of an experiment names."""
    try:
        values: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []  # as Hydra will say when it reads the file
    names = values.get("plugins") if isinstance(values, dict) else None
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{in_file(path, 'plugins')}: plugins is no list of files or modules. Write "
            "plugins: [mine.py]."
        )
    return [str(name) for name in names]
