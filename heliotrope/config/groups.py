"""The groups of which a configuration chooses one each, and the typed keys of every choice.

The class of a choice's keys is made from its entry in `heliotrope.registry`: what all choices of
the group have, and after it the parameters of its function.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, make_dataclass
from functools import cache, partial
from typing import Any, get_type_hints

from omegaconf import MISSING

from heliotrope import plugin_loading, registry
from heliotrope.config.data import DataConfig, OwnDataConfig
from heliotrope.errors import ConfigError
from heliotrope.registry import Entry, Group, Source
from heliotrope.signatures import REQUIRED, documented

__all__ = [
    "GROUPS",
    "OPTIONAL",
    "AttackConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PartitionConfig",
    "PrivacyConfig",
    "PrunerConfig",
    "SamplerConfig",
    "SecureAggregationConfig",
    "StrategyConfig",
    "TaskConfig",
    "choice_class",
    "choice_names",
    "chosen",
    "chosen_by",
    "chosen_of",
    "common_meanings",
    "defaults_of",
    "keys_of",
    "keys_of_ours",
    "shown_choice",
    "source_of",
]


@dataclass
class ModelConfig:
    """A model family.

    Parameters
    ----------
    name
        Of the choice.
    """

    name: str = MISSING


@dataclass
class TaskConfig:
    """What is learned: a loss and metrics.

    Parameters
    ----------
    name
        Of the choice.
    """

    name: str = MISSING


@dataclass
class OptimizerConfig:
    """What updates the weights: of the model in distributed mode, of each client in federated.

    Parameters
    ----------
    name
        Of the choice.
    lr
        The learning rate.
    weight_decay
        How strongly weights are drawn to 0.
    clip_norm
        The largest norm of the gradient of all weights together; null: not clipped.
    """

    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = 0.0
    clip_norm: float | None = None


@dataclass
class PartitionConfig:
    """How the training examples are divided among the clients.

    Parameters
    ----------
    name
        Of the choice.
    clients
        Their number; null: as many as the data says, where it does.
    """

    name: str = MISSING
    clients: int | None = None


@dataclass
class StrategyConfig:
    """A server strategy.

    Parameters
    ----------
    name
        Of the choice.
    """

    name: str = MISSING


@dataclass
class PrivacyConfig:
    """How those are protected whose data it is: clients, or records.

    Parameters
    ----------
    name
        Of the choice.
    """

    name: str = MISSING


@dataclass
class AttackConfig:
    """Simulated attackers among the clients.

    Parameters
    ----------
    name
        Of the choice.
    """

    name: str = MISSING


@dataclass
class SecureAggregationConfig:
    """How the server is kept from seeing what single clients send.

    Parameters
    ----------
    name
        Of the choice.
    """

    name: str = MISSING


@dataclass
class SamplerConfig:
    """What proposes the values of a trial of a search.

    Parameters
    ----------
    name
        Of the choice.
    """

    name: str = MISSING


@dataclass
class PrunerConfig:
    """What gives up trials of a search that fall behind others.

    Parameters
    ----------
    name
        Of the choice.
    """

    name: str = MISSING


# As the command line has them: what the registry calls them, and what all choices have.
_KINDS: dict[str, tuple[Group, type[Any]]] = {
    "model": ("model", ModelConfig),
    "data": ("data", DataConfig),
    "task": ("task", TaskConfig),
    "optimizer": ("optimizer", OptimizerConfig),
    "federated/partition": ("partition", PartitionConfig),
    "federated/strategy": ("strategy", StrategyConfig),
    "federated/privacy": ("privacy", PrivacyConfig),
    "federated/attack": ("attack", AttackConfig),
    "federated/secure_aggregation": ("secure_aggregation", SecureAggregationConfig),
    "distributed/privacy": ("record_privacy", PrivacyConfig),
    "search/sampler": ("sampler", SamplerConfig),
    "search/pruner": ("pruner", PrunerConfig),
}
GROUPS = tuple(_KINDS)

OPTIONAL = frozenset(
    {
        *("task", "federated/privacy", "federated/attack", "federated/secure_aggregation"),
        *("distributed/privacy", "search/sampler", "search/pruner"),
    }
)
"""Groups of which nothing needs to be chosen; runs of older versions have none of some."""

_classes: dict[Any, type[Any]] = {}  # by what `_identity` gives


def chosen_by(kind: Group) -> str | None:
    """Return the group that chooses among what the registry calls `kind`; None if none does."""
    return next((group for group, (each, _) in _KINDS.items() if each == kind), None)


def choice_names(group: str) -> list[str]:
    """Return the names that a group such as federated/strategy can be set to; none for others."""
    return registry.names(_KINDS[group][0]) if group in _KINDS else []


def choice_class(group: str, name: str) -> type[Any]:
    """Return the class of a choice's keys, always the same; `ConfigError` if there is no such."""
    entry = registry.entry(_KINDS[group][0], name)
    base, identity = _base(group, entry.built_in), _identity(entry)
    if identity not in _classes:
        types = _common(group, entry.built_in)
        _classes[identity] = make_dataclass(
            f"{name}_config",
            [
                (key, types.get(key, each.type), _default(each.default))
                for key, each in entry.signature.keys.items()
            ],
            bases=(base,),
            namespace={"__reduce__": _reduced(group)},
        )
    return _classes[identity]


def keys_of(group: str, name: str) -> dict[str, Any]:
    """Return the keys of a choice by name, and their types."""
    entry = registry.entry(_KINDS[group][0], name)
    own = {key: each.type for key, each in entry.signature.keys.items()}
    return own | _common(group, entry.built_in)


def common_meanings(group: str) -> dict[str, str]:
    """Return what the keys mean that all choices of a group have, by name."""
    found = documented(_KINDS[group][1].__doc__ or "")
    return found | documented(_base(group, ours=False).__doc__ or "")


def keys_of_ours(group: str, choice: Any) -> dict[str, Any]:
    """Return the values of a choice of ours; a plug-in checks its own, whatever they are called."""
    return vars(choice) if registry.entry(_KINDS[group][0], choice.name).built_in else {}


def source_of(group: str, name: str) -> Source | None:
    """Return the plug-in that a choice is of; None for ours."""
    return registry.entry(_KINDS[group][0], name).source


def shown_choice(group: str, name: str) -> str:
    """Return a choice as it is typed; of a plug-in's, with file and line."""
    entry = registry.entry(_KINDS[group][0], name)
    return f"{group}={name}" if entry.built_in else f"{group}={name} ({entry.where})"


def chosen(group: str, name: str, **keys: Any) -> Any:
    """Return a choice with `keys` of its own and its defaults for the others."""
    return choice_class(group, name)(name=name, **keys)


def chosen_of(run: Any, group: str) -> Any:
    """Return what a run has chosen of a group such as federated/strategy; None if nothing."""
    choice = run
    for part in group.split("/"):
        choice = None if choice is None else getattr(choice, part)
    return choice


def defaults_of(entry: Entry) -> dict[str, Any]:
    """Return the values of the keys of a choice that nobody has set.

    Raises `ConfigError` if one has none.
    """
    keys = entry.signature.keys
    missing = [name for name, key in keys.items() if key.default is REQUIRED]
    if missing:
        raise ConfigError(
            f"{entry.where}: the parameter {missing[0]} of {entry.group}={entry.name} has no "
            "default, and cannot be set. Give it one."
        )
    return {name: deepcopy(key.default) for name, key in keys.items()}


def _base(group: str, ours: bool) -> type[Any]:
    """Return the class of the keys that a choice has in common with others."""
    return OwnDataConfig if group == "data" and not ours else _KINDS[group][1]


@cache
def _common(group: str, ours: bool) -> dict[str, Any]:
    """Return the types of the keys that all choices of a kind have."""
    return get_type_hints(_base(group, ours))


def _identity(entry: Entry) -> Any:
    """Return what has a class of its own: choices of ours with the same keys share one."""
    if not entry.built_in:
        return entry
    keys = entry.signature.keys.items()
    return entry.group, repr([(name, key.type, key.default) for name, key in keys])


def _default(value: Any) -> Any:
    return MISSING if value is REQUIRED else field(default_factory=partial(deepcopy, value))


def _reduced(group: str) -> Any:
    """Return how choices of a group are pickled: by name, with the plug-in that they are of.

    Their class is not importable; another process makes it from the plug-in.
    """

    def reduce(self: Any) -> tuple[Any, ...]:
        return _unpickled, (group, self.name, source_of(group, self.name), vars(self))

    return reduce


def _unpickled(group: str, name: str, source: Source | None, values: dict[str, Any]) -> Any:
    if source is not None:
        plugin_loading.install(source)
    return choice_class(group, name)(**values)
