"""The values of many config.yaml, quickly: parts that are equal are parsed once, as one object."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import yaml  # type: ignore[import-untyped]

from heliotrope.config.written import refuse_blown_up
from heliotrope.errors import ConfigError

__all__ = ["MISSING", "at", "config_values", "differing"]

MISSING = object()
"""In place of the value of a key that is not there."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_HEAD = re.compile(r"([A-Za-z_][\w.]*):\n(?=  )")  # a key whose mapping, or text, stands below it
_NEXT_KEY = re.compile(r"\n(?![\s#]|- |-\n)")  # lists may stand below their key, not indented
_NUMBER = re.compile(r"([A-Za-z_]\w*): (?:(-?(?:0|[1-9][0-9]*))|(-?[0-9]+\.[0-9]+))\n")
_NO_NAMES = {"yes", "no", "on", "off", "true", "false", "null"}  # as keys, to YAML
_KEY = re.compile(r"  [A-Za-z_][\w.]*:")


def config_values(text: str) -> Mapping[str, Any]:
    """Return what a resolved config.yaml holds; it is shared, so do not change it.

    Raises `ConfigError` for a text that is no YAML, or no mapping.
    """
    try:
        return _mapping(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"config.yaml cannot be read: {str(error).splitlines()[0]}.") from error


def at(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key, or `MISSING`."""
    value: Any = values
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def differing(configs: Sequence[Mapping[str, Any]], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys whose values are not the same in all of `configs`.

    Where the choices of a group differ, that is its `name` alone: their keys are others as well.
    """
    names = {repr(config.get("name", MISSING)) for config in configs}
    if prefix and len(names) > 1:
        yield f"{prefix}name"
        return
    for key in dict.fromkeys(key for config in configs for key in config):
        values = list({id(v): v for v in (config.get(key, MISSING) for config in configs)}.values())
        if len(values) == 1:
            continue
        if all(isinstance(value, Mapping) for value in values):
            yield from differing(values, f"{prefix}{key}.")
        elif any(value != values[0] for value in values):
            yield f"{prefix}{key}"


@lru_cache(maxsize=1 << 16)
def _mapping(text: str) -> Mapping[str, Any]:
    merged: dict[str, Any] = {}
    for item in _NEXT_KEY.split(text):  # before each line that begins a key
        merged.update(_item(item))
    return merged


@lru_cache(maxsize=1 << 16)
def _item(text: str) -> Mapping[str, Any]:
    """Return one key of a block mapping with its value."""
    text = f"{text}\n"
    number = _NUMBER.fullmatch(text)  # what differs most in a sweep: no parser is needed
    if number is not None and number[1].lower() not in _NO_NAMES:
        return {number[1]: float(number[3]) if number[3] else int(number[2])}
    head = _HEAD.match(text)
    below = text[head.end() :] if head else ""
    if head and _KEY.match(below):
        return {head[1]: _mapping(re.sub(r"^  ", "", below, flags=re.MULTILINE))}
    if "&" in text or "*" in text:
        refuse_blown_up(text, "config.yaml")
    value = yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe one
    if value is None:  # blank lines, comments
        return {}
    if not isinstance(value, dict):
        raise ValueError("it holds no keys and values")
    return {str(key): each for key, each in value.items()}
