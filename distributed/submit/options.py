"""What stands before the `--` of `heliotrope submit`: the kind of cluster, and its keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from importlib import import_module
from typing import Any, Final

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from heliotrope import config, registry
from heliotrope.commands.arguments import keys_and_values
from heliotrope.errors import ConfigError, closest
from heliotrope.shell import typed
from heliotrope.signatures import REQUIRED, Key, shown

from .base import Cluster

__all__ = ["Options", "options_of"]

_GROUP: Final = "cluster"
_OWN = ("cluster", "dry_run", "storage")


@dataclass(frozen=True)
class Options:
    """How a command is submitted.

    Parameters
    ----------
    name
        Of the kind of cluster.
    values
        Of its keys.
    dry_run
        Whether to print what would be sent, and send nothing.
    storage
        The URL below which the directory of the run is kept; None: on a shared file system.
    """

    name: str
    values: Mapping[str, Any]
    dry_run: bool
    storage: str | None = None

    def cluster(self) -> Cluster[Any]:
        """Return the cluster that is chosen."""
        built: Cluster[Any] = registry.entry(_GROUP, self.name).build(self.values)
        return built


def options_of(arguments: Sequence[str]) -> Options:
    """Return what `arguments` say; `ConfigError` names the word at fault, and what to type."""
    keys = [word for word in arguments if word.startswith(f"{_GROUP}.")]
    others = [word for word in arguments if word not in keys]
    own = keys_and_values(others, "submit", _OWN, {})
    name = own.get("cluster", "local")
    signature = registry.entry(_GROUP, name).signature
    fields = [
        (key, each.type, _default(each.default))
        for key, each in {"name": Key(str, name), **signature.keys}.items()
    ]
    values = OmegaConf.structured(make_dataclass(f"{name}_cluster", fields))
    values = OmegaConf.merge(values, OmegaConf.load(config.conf_dir() / _GROUP / f"{name}.yaml"))
    assert isinstance(values, DictConfig)
    for word in keys:
        _set(values, name, word)
    for key in signature.keys:
        if OmegaConf.is_missing(values, key):
            raise ConfigError(
                f"cluster.{key} is not set: cluster={name} has no default for it. Set "
                f"cluster.{key}=VALUE, of type {shown(signature.keys[key].type)}."
            )
    found = OmegaConf.to_container(values)
    assert isinstance(found, dict)
    chosen = {key: found[key] for key in signature.keys}
    return Options(name, chosen, _dry_run(own), _storage(own, name))


def _default(value: Any) -> Any:
    if value is REQUIRED:
        return field(default="???")
    return field(default_factory=partial(deepcopy, value))


def _dry_run(own: Mapping[str, str]) -> bool:
    value = own.get("dry_run", "false").lower()
    if value not in ("true", "false"):
        raise ConfigError(f"dry_run={value} must be true or false.")
    return value == "true"


def _storage(own: Mapping[str, str], name: str) -> str | None:
    """Return the URL that `storage` says; `ConfigError` if it is of no protocol of fsspec."""
    url = own.get("storage")
    if url is None:
        return None
    if name == "local":
        raise ConfigError(
            f"storage={url}: cluster=local writes the run's directory here. Leave it out, or keep "
            f"it there while it runs: heliotrope mirror storage={url}/NAME -- COMMAND."
        )
    protocol, separator, _ = url.partition("://")
    known = import_module("fsspec").available_protocols()
    if not separator or protocol not in known:
        raise ConfigError(
            f"storage={url} is not a URL such as s3://bucket/runs or file:///shared/runs."
            f"{closest(protocol, known) if separator else ''}"
        )
    return url


def _set(values: DictConfig, name: str, word: str) -> None:
    """Set a key of the cluster `name` to what `cluster.KEY=VALUE` says."""
    key, _, value = word.partition("=")
    inner = key.removeprefix(f"{_GROUP}.")
    top = inner.partition(".")[0]
    if top not in values or top == "name":
        known = [f"{_GROUP}.{each}" for each in _keys(name)]
        having = [other for other in registry.names(_GROUP) if top in _keys(other)]
        elsewhere = f" It is one of {' and '.join(f'cluster={h}' for h in having)}."
        listed = f"Its keys are {', '.join(known)}." if known else "It has no keys."
        raise ConfigError(
            f"{word}: cluster={name} has no key {inner}. {listed}"
            f"{elsewhere if having else closest(key, known)}"
        )
    try:
        parsed = OverridesParser.create().parse_override(word)
        if parsed.is_sweep_override():
            raise ConfigError(
                f"{word} is several values. For one text, write {typed(key, value)}; for a list, "
                f"'{key}=[{value}]'."
            )
        OmegaConf.update(values, inner, parsed.value(), merge=True)
    except (HydraException, OmegaConfBaseException) as error:
        kind = _keys(name).get(inner)
        meant = f"Its type is {shown(kind.type)}." if kind else "Quote it, or leave it out."
        raise ConfigError(f"{word} cannot be read. {meant}") from error


def _keys(name: str) -> Mapping[str, Key]:
    return registry.entry(_GROUP, name).signature.keys
