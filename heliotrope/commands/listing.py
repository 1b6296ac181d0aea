"""`list`: the names that a configuration can choose, and the keys of each."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, cast, get_args

from omegaconf import OmegaConf

from heliotrope import config, registry
from heliotrope.commands.output import aligned
from heliotrope.config.groups import chosen_by, common_meanings, keys_of
from heliotrope.errors import ConfigError, closest
from heliotrope.registry import Entry, Group
from heliotrope.signatures import REQUIRED, shown
from heliotrope.system.console import plain_console

__all__ = ["list_command"]

_GROUPS: tuple[Group, ...] = get_args(Group)
# Of which the configuration has no group of files: the keys that take a name.
_KEYS = {
    "metric": "metrics=[NAME]",
    "schedule": "distributed.lr_schedule=NAME, federated.lr_schedule=NAME",
    "cluster": "submit cluster=NAME",
}

# What those keys are called here: who knows them from a configuration types them.
_CHOSEN_AS = {
    "metrics": "metric",
    "distributed.lr_schedule": "schedule",
    "federated.lr_schedule": "schedule",
}


def list_command(arguments: Sequence[str]) -> None:
    """`[GROUP | GROUP=NAME ...] [plugins=[...]]`: print names, or the keys of a choice."""
    config.load_plugins(arguments)
    asked = [word for word in arguments if not word.lstrip("+").startswith("plugins=")]
    wanted = [_wanted(word) for word in asked] or [(group, None) for group in _GROUPS]
    console = plain_console()
    blocks = [_keys(group, name) if name else _names(group) for group, name in wanted]
    console.print("\n\n".join(block for block in blocks if block))


def _wanted(word: str) -> tuple[Group, str | None]:
    """Return the group and the name that a word asks for; groups of a mode also as federated/..."""
    key, equals, name = word.partition("=")
    group = next((group for group in _GROUPS if group == key or chosen_by(group) == key), None)
    if key in _CHOSEN_AS:
        there = f"{_CHOSEN_AS[key]}{equals}{name.strip('[]')}"
        raise ConfigError(f"list takes GROUP or GROUP=NAME, not '{word}'. Type list {there}.")
    if group is None or (equals and not name):
        raise ConfigError(
            f"list takes GROUP or GROUP=NAME with the groups {', '.join(_GROUPS)}, and "
            f"plugins=[...], not '{word}'.{closest(key, _GROUPS)}"
        )
    return group, name or None


def _names(group: Group) -> str:
    """Return a group with its names, a line each; nothing for one that is empty."""
    entries = [registry.entry(group, name) for name in registry.names(group)]
    if not entries:
        return ""
    chooser = chosen_by(group)
    how = f"{chooser}=NAME" if chooser else _KEYS.get(group, "")
    rows = [(entry.name, f"{entry.signature.doc or '-'}{_origin(entry)}") for entry in entries]
    return "\n".join([f"{group}  ({how})" if how else group, *aligned(rows)])


def _keys(group: Group, name: str) -> str:
    """Return a choice with its keys: type, default and meaning of each."""
    entry, chooser = registry.entry(group, name), chosen_by(group)
    signature = entry.signature
    types: dict[str, Any] = {key: each.type for key, each in signature.keys.items()}
    values = {key: each.default for key, each in signature.keys.items()}
    meanings = signature.meanings
    if chooser:
        types = {key: kind for key, kind in keys_of(chooser, name).items() if key != "name"}
        values = cast(dict[str, Any], OmegaConf.to_container(config.defaults(chooser, name)))
        meanings = common_meanings(chooser) | meanings
    above = chooser.replace("/", ".") if chooser else "cluster" if group == "cluster" else ""
    prefix = f"{above}." if above else ""
    rows = [
        (f"{prefix}{key}", shown(kind), _value(values[key]), meanings.get(key, ""))
        for key, kind in types.items()
    ]
    prose = re.split(r"\n\n[^\n]+\n---", signature.text)[0]  # what stands before the sections
    title = f"{chooser or group}={name}{_origin(entry)}"
    return "\n".join([title, *([prose] if prose else []), *aligned(rows)])


def _origin(entry: Entry) -> str:
    return "" if entry.built_in else f"  ({entry.where})"


def _value(value: Any) -> str:
    """Return a default as one types it."""
    if value is REQUIRED or value == "???":
        return "(to be set)"
    return value if isinstance(value, str) and value else json.dumps(value)
