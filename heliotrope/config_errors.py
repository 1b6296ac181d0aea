"""Turns the exceptions of Hydra and OmegaConf into one paragraph: key, value, remedy."""

from __future__ import annotations

import re
import sys
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.errors import MissingConfigException

from heliotrope.config import SCHEMAS, DistributedConfig, FederatedConfig, Run
from heliotrope.errors import closest

__all__ = ["explain", "unknown_key"]

# What OmegaConf says of a value -> what to do about it.
_REMEDIES = {
    "converted to Integer": "Set a whole number.",
    "converted to Float": "Set a number.",
    "not a valid bool": "Set true or false.",
    "is not Optional": "Set a value.",
    "not a ListConfig": "Set a list, such as [128, 64].",
    "not a dict": "Set one of the keys below it.",
    "missing mandatory value": "Set it.",
}


def explain(error: Exception) -> str:
    """Return what is wrong in the user's words: the key, the value, and what to do."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _missing_choice(error)
    text = "\n".join(str(part) for part in _chain(error))
    match = re.search(r"Error parsing override '(.*)'\n(.*)", text)
    if match:
        return (
            f"{match[1]} cannot be read as an override: {match[2]}. Write key=value, such as "
            "seed=1, and quote a value with special characters: 'name=\"a=b\"'."
        )
    match = re.search(r"Multiple values for (\S+)\.", text)
    if match:
        return f"{match[1]}{_given(match[1])}: there is a {match[1]} already. Leave out the +."
    match = re.search(r"Could not override '([^']+)'", text)
    if match:
        return unknown_key(match[1])
    match = re.search(r"Interpolation key '([^']+)' not found", text)
    if match:
        reference = f"${{{match[1]}}}"
        typed = next((arg for arg in sys.argv[1:] if reference in arg), reference)
        return f"{typed}: there is no key {match[1]}.{closest(match[1], _known_keys())}"
    if "Config group override must be" in text:
        group = next((arg for arg in sys.argv[1:] if arg.endswith("=null")), "A null group")
        return f"{group} leaves nothing to build. Choose by name; --help lists the choices."
    full = re.search(r"full_key: (\S+)", text)
    match = re.search(r"Key '([^']+)' (?:is )?not in '(\w+)'", text)
    if match:
        return unknown_key(full[1] if full else match[1])
    if full:
        reason = next(line for line in _reason_lines(error) if line)
        remedy = next((say for part, say in _REMEDIES.items() if part in reason), "")
        return f"{full[1]}{_given(full[1])}: {reason}. {remedy}".rstrip()
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
    for argument in reversed(sys.argv[1:]):
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


def unknown_key(key: str, value: object = None) -> str:
    """Return what to say of a key that the composed config does not have."""
    keys = _known_keys()
    given = _given(key) or (f"={value}" if value is not None else "")
    parent, _, name = key.rpartition(".")
    group = parent.replace(".", "/")
    having = [
        choice
        for choice, schema in SCHEMAS.get(group, {}).items()
        if name in (item.name for item in fields(schema))
    ]
    if having:
        return (
            f"{key}{given}: the chosen {group} has no such key. Leave it out, or choose "
            f"{' or '.join(f'{group}={choice}' for choice in having)}."
        )
    return f"{key}{given}: there is no such key.{closest(key, keys)}"


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
