"""Turns the exceptions of Hydra and OmegaConf into one paragraph: key, value, remedy."""

from __future__ import annotations

import re
import sys
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.errors import MissingConfigException

from heliotrope.config import SCHEMAS, DistributedConfig, FederatedConfig, Run
from heliotrope.errors import closest

__all__ = ["explain"]


def explain(error: Exception) -> str:
    """Return what is wrong in the user's words: the key, the value, and what to do."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _missing_choice(error)
    text = "\n".join(str(part) for part in _chain(error))
    match = re.search(r"Could not override '([^']+)'", text)
    if match:
        return _unknown(match[1])
    match = re.search(r"Key '([^']+)' (?:is )?not in '(\w+)'", text)
    if match:
        full = re.search(r"full_key: (\S+)", text)
        return _unknown(full[1] if full else match[1])
    match = re.search(r"full_key: (\S+)", text)
    if match:
        reason = next(line for line in _reason_lines(error) if line)
        return f"{match[1]}{_given(match[1])}: {reason}."
    return _first_paragraph(str(error))


def _chain(error: BaseException) -> list[BaseException]:
    parts = [error]
    while parts[-1].__cause__ is not None:
        parts.append(parts[-1].__cause__)
    return parts


def _reason_lines(error: Exception) -> list[str]:
    return [line.strip().rstrip(".") for line in str(_chain(error)[-1]).splitlines()]


def _first_paragraph(text: str) -> str:
    return text.strip().split("\n\n")[0]


def _given(key: str) -> str:
    """Return `=value` as the command line gave it, for an error that only knows the key."""
    for argument in sys.argv[1:]:
        name, equals, value = argument.lstrip("+").partition("=")
        if equals and name == key:
            return f"={value}"
    return ""


def _missing_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    options = [option for option in error.options or [] if not option.endswith("_schema")]
    return (
        f"{group or 'config'}={choice} is not one of {', '.join(options)}."
        f"{closest(choice, options)}"
    )


def _unknown(key: str) -> str:
    keys = _known_keys()
    if key in keys:
        return (
            f"{key}{_given(key)}: the chosen {key.rpartition('.')[0]} has no such key. "
            f"It belongs to another choice of that group."
        )
    return f"{key}{_given(key)}: there is no such key.{closest(key, keys)}"


def _known_keys() -> list[str]:
    """Return every dotted key and group of the schema."""
    keys: list[str] = [*SCHEMAS, *_keys(Run, "")]
    keys += _keys(DistributedConfig, "distributed.") + _keys(FederatedConfig, "federated.")
    for group, choices in SCHEMAS.items():
        for schema in choices.values():
            keys += _keys(schema, group.replace("/", ".") + ".")
    keys += ["experiment", "hydra.run.dir", "hydra.sweep.dir"]
    return sorted(set(keys))


def _keys(schema: type[Any], prefix: str) -> list[str]:
    found: list[str] = []
    for item in fields(schema):
        found.append(prefix + item.name)
        default = item.default_factory if callable(item.default_factory) else None
        if isinstance(default, type) and is_dataclass(default):
            found += _keys(default, f"{prefix}{item.name}.")
    return found
