"""Hydra's own choices that are typed, such as a sweeper, and what packages configure for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl  # not public: sees all of it
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from heliotrope.config.written import leaves

__all__ = ["HydraChoices"]

_PACKAGES = ("pkg://", "structured://")  # not file://, which an experiment may bring


class HydraChoices:
    """What a command line says of Hydra itself.

    Parameters
    ----------
    overrides
        Of the command line.
    path
        Where Hydra looks for choices.
    load
        How it composes a configuration of them, with a `ConfigLoaderImpl` as its first argument.
    """

    def __init__(
        self, overrides: Sequence[str], path: ConfigSearchPath, load: Callable[..., DictConfig]
    ) -> None:
        plain = [override.lstrip("+") for override in overrides]
        self._choices = [o for o in plain if o.startswith("hydra/")]
        self._keys = {o.partition("=")[0] for o in plain if o.startswith("hydra.")}
        self._path, self._load = path, load
        self.installed = cache(self._installed)

    def names(self, key: str) -> bool:
        """Return whether a key, or what it is part of, is typed."""
        return any(key == typed or key.startswith(f"{typed}.") for typed in self._keys)

    def _installed(self) -> frozenset[tuple[str, object]]:
        """Return the keys and values that installed packages have for the choices."""
        if not self._choices:
            return frozenset()
        packages = ConfigSearchPathImpl()
        for element in self._path.get_path():
            if str(element.path).startswith(_PACKAGES):
                packages.append(str(element.provider), str(element.path))
        loader = ConfigLoaderImpl(packages)
        try:
            composed = self._load(loader, None, self._choices, RunMode.RUN)
        except HydraException:  # one of them is not of a package
            return frozenset()
        return frozenset(leaves(OmegaConf.to_container(composed.hydra, resolve=False), "hydra"))
