"""Turns the exceptions of Hydra and OmegaConf into one paragraph: key, value, remedy."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from heliotrope.config.code_refused import refusing_code
from heliotrope.config.files import (
    explain_composition,
    explain_text,
    explain_yaml,
    in_experiment,
    keys_in_experiments,
)
from heliotrope.config.groups import GROUPS, choice_names, keys_of, shown_choice
from heliotrope.config.keys import known_keys, nearest_keys, typed_value, unknown_key
from heliotrope.errors import ConfigError, closest
from heliotrope.signatures import shown

__all__ = ["composing", "explain"]

# What OmegaConf says of a value -> what to do about it.
_REMEDIES = {
    "converted to Integer": "Set a whole number.",
    "converted to Float": "Set a number.",
    "not a valid bool": "Set true or false.",
    "is not Optional": "Set a value.",
    "not a dict": "Set one of the keys below it.",
    "missing mandatory value": "Set it.",
}


@contextmanager
def composing() -> Iterator[None]:
    """Turn what Hydra, OmegaConf and YAML raise in the block into a `ConfigError`.

    A configuration that names code is refused, before any of it is called.
    """
    try:
        with refusing_code():
            yield
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(explain(error)) from error
    except RecursionError as error:
        raise ConfigError("The configuration nests too deeply, or refers to itself.") from error


def explain(error: Exception) -> str:
    """Return what is wrong in the user's words: the key, the value, and what to do."""
    if isinstance(error, YAMLError):
        return explain_yaml(error)
    if isinstance(error, UnicodeDecodeError):
        return explain_text(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _missing_choice(error)
    ours = _of_a_resolver(error)
    if ours is not None:
        return ours
    text = "\n".join(str(part) for part in _chain(error))
    return _of_a_group(text) or _of_a_reference(text) or _of_a_key(error, text)


def _of_a_group(text: str) -> str | None:
    """Explain what is wrong with the choice of a group, on the command line or in a file."""
    if "Config group override must be" in text:
        groups = [argument for argument in sys.argv[1:] if argument.partition("=")[0] in GROUPS]
        named = next((one for one in groups if re.search(r"=(null|[\d.]+|true|false)$", one)), None)
        return f"{named or 'A group'} names no choice. Choose by name; --help lists the choices."
    match = re.search(r"Multiple values for (\S+)\. To override a value use 'override", text)
    added = match and any(argument.startswith(f"+{match[1]}=") for argument in sys.argv[1:])
    if match and added:
        return f"{match[1]}{typed_value(match[1])}: there is a {match[1]} already. Leave out the +."
    if match:
        return (
            f"{in_experiment()}{match[1]} is chosen already. Write '- override /{match[1]}: "
            "CHOICE' under defaults."
        )
    match = re.search(r"Invalid defaults list in '([^']+)'", text)
    if match:
        return (
            f"{in_experiment()}defaults is a list. Write '- override /GROUP: CHOICE', a line each."
        )
    match = re.search(r"Could not override '([^']+)'", text)
    if match:
        return explain_composition(text, unknown_key(match[1])) or unknown_key(match[1])
    return None


def _of_a_reference(text: str) -> str | None:
    """Explain `${...}` that leads nowhere."""
    match = re.search(r"Interpolation key '([^']+)' not found", text)
    if match:
        reference = f"${{{match[1]}}}"
        typed = next((arg for arg in sys.argv[1:] if reference in arg), reference)
        return f"{typed}: there is no key {match[1]}.{nearest_keys(match[1])}"
    match = re.search(
        r"resolving interpolation: (.*)|(Unsupported interpolation type \S+)|(Recursive inter.*)",
        text,
    )
    if match is None:
        return None
    typed = next((arg for arg in sys.argv[1:] if "${" in arg), "A reference")
    reason = next(filter(None, match.groups())).strip("'\"").rstrip(".")
    return f"{typed}: {reason}. Write ${{KEY}}, such as ${{seed}}, for the value of another key."


def _of_a_key(error: Exception, text: str) -> str:
    full = re.search(r"full_key: (\S+)", text)
    if full and "missing mandatory value" in text:
        return _not_set(full[1], text)
    match = re.search(r"Key '([^']+)' (?:is )?not in '(\w+)'", text)
    if match:
        unknown = _swapped(text) or unknown_key(full[1] if full else match[1])
        return explain_composition(text, unknown) or unknown
    if full is None:
        return explain_composition(text, None) or _first_paragraph(str(error))
    lines = [line for line in _reason_lines(error) if line and "raised while" not in line]
    remedy = next((say for part, say in _REMEDIES.items() if part in lines[0]), "")
    if "not a ListConfig" in lines[0]:
        remedy = _as_list(full[1])
    located = explain_composition(text, None)
    where = f"{located}: {full[1]}" if located else f"{full[1]}{typed_value(full[1])}"
    return f"{where}: {lines[0]}. {remedy}".rstrip()


def _swapped(text: str) -> str | None:
    """Say how to leave out what an experiment sets of a choice that the command line swaps."""
    if "In 'experiment/" not in text:
        return None
    chosen = {group: typed_value(group).removeprefix("=") for group in GROUPS}
    left = [
        (f"{group.replace('/', '.')}.{key}", f"{group}={choice}")
        for group, choice in chosen.items()
        if choice in choice_names(group)
        for key in keys_in_experiments(group, sys.argv[1:])
        if key not in keys_of(group, choice)
    ]
    if not left:
        return None
    said = " and ".join(f"{key} is no key of {choice}" for key, choice in left)
    typed = " ".join(shlex.quote(f"~{key}") for key, _ in left)
    return f"{said}. Add {typed} to the command line, which leaves out what the file sets."


def _not_set(key: str, text: str) -> str:
    """Say which choice needs a key that is not set."""
    parent, _, name = key.rpartition(".")
    group, chosen = parent.replace(".", "/"), re.search(r"object_type=(\w+)_config", text)
    choice = typed_value(group).removeprefix("=") or (chosen[1] if chosen else "")
    if choice not in choice_names(group):
        return f"{key} is not set. Set {key}=VALUE."
    return (
        f"{key} is not set: {shown_choice(group, choice)} has no default for it. Set {key}=VALUE, "
        f"of type {shown(keys_of(group, choice)[name])}."
    )


def _as_list(key: str) -> str:
    """Say how a list is written: of the value that was given, else of the type of the key."""
    if given := typed_value(key).removeprefix("="):
        return f"Set a list: {key}=[{given}]."
    kinds = known_keys().get(key, "")
    examples = (("int", "[128, 64]"), ("float", "[0.9, 0.99]"), ("str", "[NAME]"))
    return f"Set a list, such as {next((e for kind, e in examples if kind in kinds), '[...]')}."


def _of_a_resolver(error: BaseException) -> str | None:
    """Return what our own code had to say that OmegaConf called for a value."""
    part: BaseException | None = error
    while part is not None:
        if isinstance(part, ConfigError):
            return str(part)
        part = part.__cause__ or part.__context__
    return None


def _chain(error: BaseException) -> list[BaseException]:
    parts = [error]
    while parts[-1].__cause__ is not None:
        parts.append(parts[-1].__cause__)
    return parts


def _reason_lines(error: Exception) -> list[str]:
    return [line.strip().rstrip(".") for line in str(_chain(error)[-1]).splitlines()]


def _first_paragraph(text: str) -> str:
    return text.strip().split("\n\n")[0]


def _missing_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    options = [option for option in error.options or [] if not option.endswith("_schema")]
    typed = any(argument.lstrip("+").startswith(f"{group}=") for argument in sys.argv[1:])
    where = "" if typed else in_experiment()
    return (
        f"{where}{group or 'config'}={choice} is not one of {', '.join(options)}."
        f"{closest(choice, options)}"
    )
