"""Every key that a configuration can have, and what to say of one that it cannot."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass
from typing import Any

from heliotrope.config.distributed import DistributedConfig
from heliotrope.config.federated import FederatedConfig
from heliotrope.config.groups import GROUPS, choice_names, keys_of
from heliotrope.config.run import Run
from heliotrope.config.search import SearchConfig
from heliotrope.errors import closest
from heliotrope.signatures import shown

__all__ = ["known_keys", "nearest_keys", "typed_value", "unknown_key"]

_MOST_MEANT = 3  # keys that an error names


def unknown_key(key: str, value: object = None) -> str:
    """Return what to say of a key that the composed config does not have."""
    given = typed_value(key) or (f"={value}" if value is not None else "")
    parent, _, name = key.rpartition(".")
    group = parent.replace(".", "/")
    having = [choice for choice in choice_names(group) if name in keys_of(group, choice)]
    if having:
        return (
            f"{key}{given}: the chosen {group} has no such key. Leave it out, or choose "
            f"{' or '.join(f'{group}={choice}' for choice in having)}."
        )
    return f"{key}{given}: there is no such key.{nearest_keys(key)}"


def nearest_keys(key: str) -> str:
    """Return `" Did you mean 'x'?"` for the keys that `key` may stand for, or an empty string.

    Those of the same name elsewhere come before one that is written alike.
    """
    keys = known_keys()
    name = key.rpartition(".")[2]
    elsewhere = [each for each in keys if each != key and each.rpartition(".")[2] == name]
    if "." in key and (near := closest(key, elsewhere)):
        return near
    if 0 < len(elsewhere) <= _MOST_MEANT:
        return f" Did you mean {' or '.join(map(repr, elsewhere))}?"
    return closest(key, keys)


def known_keys() -> dict[str, str]:
    """Return every dotted key and its type as the schema has it, and every group ("group").

    Choices of a group may have keys of one name and of different types: "int or list[int]".
    """
    types = dict.fromkeys((*GROUPS, "experiment"), "group") | _types(Run, "")
    for schema in (DistributedConfig, FederatedConfig, SearchConfig):
        types |= _types(schema, f"{schema.__name__.removesuffix('Config').lower()}.")
    for group in GROUPS:
        own: dict[str, set[str]] = {}
        for choice in choice_names(group):
            for key, kind in keys_of(group, choice).items():
                own.setdefault(f"{group.replace('/', '.')}.{key}", set()).add(shown(kind))
        types |= {key: " or ".join(sorted(kinds)) for key, kinds in own.items()}
    types |= dict.fromkeys(("hydra.run.dir", "hydra.sweep.dir"), "str")
    return dict(sorted(types.items()))


def _types(schema: type[Any], prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in fields(schema):
        found[prefix + item.name] = shown(item.type)
        default = item.default_factory if callable(item.default_factory) else None
        if isinstance(default, type) and is_dataclass(default):
            found |= _types(default, f"{prefix}{item.name}.")
    return found


def typed_value(key: str) -> str:
    """Return `=value` as the command line gave it, for an error that only knows the key."""
    for argument in reversed(sys.argv[1:]):
        name, equals, value = argument.lstrip("+").partition("=")
        if equals and name == key:
            return f"={value}"
    return ""
