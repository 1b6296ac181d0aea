"""What a command that composes no config is given: key=value, for keys of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from heliotrope.errors import ConfigError, closest

__all__ = ["keys_and_values"]


def keys_and_values(
    arguments: Sequence[str], command: str, keys: Sequence[str], needed: Mapping[str, str]
) -> dict[str, str]:
    """Return what `command` was given as key=value; `needed` says what some of its keys are.

    Raises `ConfigError` for another key, for a key alone, and for one of `needed` that is missing.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in keys:
            raise ConfigError(
                f"{command} takes key=value with the keys {', '.join(keys)}, "
                f"not '{argument}'.{closest(key, keys)}"
            )
        if not equals:
            what = needed.get(key, "VALUE")
            raise ConfigError(
                f"{command}: {key} has no value. Write, without spaces, {key}={what}."
            )
        given[key] = value
    for key, what in needed.items():
        if key not in given:
            raise ConfigError(f"{command} needs {key}={what}.")
    return given
