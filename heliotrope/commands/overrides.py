"""The command line before Hydra reads it: flags in any place, slips in overrides explained."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser  # not public: Hydra has no other list of flags
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import HydraException

from heliotrope import registry
from heliotrope.config import GROUPS, choice_names, conf_dir, left_out
from heliotrope.config.files import choices
from heliotrope.config.keys import known_keys, nearest_keys
from heliotrope.errors import ConfigError, closest
from heliotrope.shell import offending, quoted, typed

__all__ = ["checked", "prepared"]

_SWEEPING = ("-m", "--multirun")
_OPTIMIZERS = ("optuna", "nevergrad", "ax")  # sweepers of packages for Hydra


def prepared(arguments: Sequence[str]) -> list[str]:
    """Return a mode's command line as Hydra takes it: overrides first, then flags.

    Raises `ConfigError` naming a flag that there is not, or an override that cannot be read.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    parser.allow_abbrev = False  # --experiment would be --experimental-rerun
    try:
        known, unknown = parser.parse_known_intermixed_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}. --hydra-help lists the flags.") from error
    if unknown:
        raise ConfigError(_no_flag(unknown[0], parser))
    flags = list(arguments)
    for override in known.overrides:
        flags.remove(override)
    sweeping = known.multirun or "hydra.mode=MULTIRUN" in known.overrides
    return [*checked(known.overrides, sweeping=sweeping), *flags]


def checked(overrides: Sequence[str], *, sweeping: bool = False) -> list[str]:
    """Return `overrides` for Hydra, which will be able to read them.

    `glob(...)` over the choices of a group leaves out the schemas, which are no choices. Keys that
    are left out of an experiment, `~KEY`, are so when its file is read, and not for Hydra to take
    away. Raises `ConfigError` naming the override, and what to type instead.
    """
    done = left_out(overrides)
    found = [_checked(override, sweeping) for override in overrides if override not in done]
    if sweeping:
        _refuse_replaced(found)
    return found


def _checked(override: str, sweeping: bool) -> str:
    key, _, value = override.partition("=")
    try:
        parsed = _parse(override)
    except HydraException as error:
        raise ConfigError(_unreadable(override, str(error), sweeping)) from error
    except RecursionError as error:
        raise ConfigError(f"{override[:60]}... nests too deeply.") from error
    name = parsed.key_or_group
    if name in ("hydra.searchpath", "hydra"):
        raise ConfigError(
            f"{override}: Hydra would import what it searches. Name a folder: --config-dir DIR."
        )
    if not name:
        raise ConfigError(f"{override} has no key. Write key=value, such as seed=1.")
    if override.startswith("~"):
        return _removed(override, name)
    if name in ("hydra.run.dir", "hydra.sweep.dir") and not value.strip("\"' "):
        raise ConfigError(
            f"{override} names no directory. Set one, such as {name}=runs/mine, or leave it out "
            "for a new one below runs/."
        )
    if name == "hydra/sweeper" and value in _OPTIMIZERS:
        raise ConfigError(
            f"{override} needs jobs that return a value, and these leave theirs in result.json. "
            "Leave it out, and set search.trials to the number of jobs: README, Search."
        )
    group = name.replace(".", "/")
    if group in GROUPS and group != name and not isinstance(parsed.value(), dict):
        raise ConfigError(
            f"{override}: {group} is a group of files, chosen with a slash. Write {group}={value}."
        )
    if group in GROUPS and value.endswith("_schema"):
        raise ConfigError(
            f"{override} is the types of a choice only. Write {group}={value[: -len('_schema')]}."
        )
    if name in GROUPS and isinstance(parsed.value(), list):
        raise ConfigError(f"{override} is several choices where there is one. Write {name}=CHOICE.")
    if name == "cluster" and value in registry.names("cluster"):
        raise ConfigError(
            f"{override} says where a command is sent, not how it runs: heliotrope submit "
            f"{override} -- COMMAND."
        )
    if not parsed.is_sweep_override():
        return override
    if not sweeping:
        raise ConfigError(_several(override, key, value))
    if not parsed.is_discrete_sweep():
        return override  # for a search: a sweep will refuse it
    chosen = parsed.value()
    if isinstance(chosen, Glob):
        return f"{key}={_without_schemas(chosen, name, override)}"
    if not list(parsed.sweep_iterator()):
        raise ConfigError(f"{override} holds no value: the sweep has no jobs.")
    return override


def _refuse_replaced(overrides: Sequence[str]) -> None:
    """Raise `ConfigError` if a sweep would drop keys: it takes the last of several mappings."""
    mappings: dict[str, str] = {}
    for override in overrides:
        parsed = _parse(override)
        given = parsed.value()
        values = given.list if isinstance(given, ChoiceSweep) else [given]
        if not any(isinstance(value, dict) for value in values):
            continue
        key = parsed.get_key_element()
        if key in mappings:
            raise ConfigError(
                f"{override} would replace all of {mappings[key]} in a sweep, where a single run "
                f"joins them. Write one, or keys by themselves, such as {key}.KEY=VALUE."
            )
        mappings[key] = override


def _without_schemas(chosen: Glob, group: str, override: str) -> str:
    """Return `glob(...)` over the choices of a group, of which it must match one."""
    chosen.exclude.append("*_schema")
    found = choices(group)
    if not chosen.filter(found):
        given = f"the choices {', '.join(found)}" if found else f"{group}, which is no group"
        raise ConfigError(f"{override} matches none of {given}: the sweep has no jobs.")
    wanted, left_out = (",".join(map(quoted, part)) for part in (chosen.include, chosen.exclude))
    return f"glob([{wanted}],exclude=[{left_out}])"


def _removed(override: str, name: str) -> str:
    """Return an override that takes away what an experiment can do without."""
    if name.split(".")[0].split("/")[0] in ("hydra", "experiment"):
        return override
    if name in known_keys():
        raise ConfigError(
            f"{override}: no experiment here sets it, so it cannot be left out. Write {name}=VALUE."
        )
    raise ConfigError(f"{override}: there is no such key.{nearest_keys(name)}")


def _parse(override: str) -> Override:
    """Return what Hydra reads; raises `HydraException`."""
    return OverridesParser.create().parse_override(override)


def _readable(override: str) -> bool:
    try:
        _parse(override)
    except HydraException:
        return False
    return True


def _no_flag(flag: str, parser: argparse.ArgumentParser) -> str:
    name, _, value = flag.lstrip("-").partition("=")
    key = name.replace("-", "_")
    if key in known_keys():
        return f"{flag}: keys have no dashes. Write {key}={value or 'VALUE'}."
    flags = [option for action in parser._actions for option in action.option_strings]  # noqa: SLF001
    return f"{flag}: there is no such flag.{closest(flag, flags)} --help lists keys and flags."


def _several(override: str, key: str, value: str) -> str:
    kinds, remedy = known_keys().get(key.lstrip("+"), "").split(" or "), ""
    if any(kind.startswith(("list", "tuple", "Any")) for kind in kinds):
        remedy = f" For a list, write '{key}=[{value}]'."
    if any(kind.startswith("str") for kind in kinds):
        remedy = f" For one text, write {typed(key, value)}."
    return f"{override} is several values: add -m (--multirun) to run a job for each.{remedy}"


def _unreadable(override: str, reason: str, sweeping: bool) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override or repr(override)} is not key=value.{_meant(override)}"
    if not _readable(f"{key}=1"):
        bare = key.lstrip("+~")
        dotted = bare.replace("/", ".")
        meant = (
            f" Write {dotted}={value}." if dotted in known_keys() else closest(bare, known_keys())
        )
        return f"{override}: {bare} is no key, which has names with dots between.{meant}"
    function = re.search(r"Unknown function '(\w+)'", reason)
    if function:
        functions = ("choice", "range", "glob", "sort", "shuffle", "int", "float", "str", "bool")
        as_text = shlex.quote(f"{key}={_quoted(value)}")
        meant = closest(function[1], functions) or f" Quote it as text: {as_text}."
        return f"{override}: there is no function {function[1]}.{meant}"
    return f"{override} cannot be read. {_value_remedy(key, value, sweeping)}"


def _meant(word: str) -> str:
    """Return what to type instead of a word without an equals sign."""
    if word in known_keys():
        return f" Write {word}=VALUE without spaces."
    name = re.split(r"[./:]", word)[-1]
    for group in GROUPS:
        if name in choice_names(group):
            return f" Write {group}={name}."
    for path in sorted(conf_dir().glob("*/**/*.yaml")):
        if path.stem == name:
            return f" Write {path.parent.relative_to(conf_dir())}={name}."
    return " Write key=value without spaces, such as seed=1."


def _value_remedy(key: str, value: str, sweeping: bool) -> str:
    if value.startswith("="):
        return f"Write key=value with one sign: {key}={value.lstrip('=')}."
    if value.startswith("~"):
        return f'A shell expands ~ at the start of a word only: write {key}="$HOME{value[1:]}".'
    if value.startswith("(") and value.endswith(")"):
        return f"Write a list in brackets: '{key}=[{value[1:-1]}]'."
    several = sweeping and "," in value and not set(value) & set("[](){}\"'")
    parts = [quoted(part) for part in value.split(",")] if several else [_quoted(value)]
    remedy = shlex.quote(f"{key}={','.join(parts)}")
    for start, end in ("[]", "{}", "()"):
        if value.count(start) != value.count(end):
            return f"A bracket is not closed. Close it, or quote the value as text: {remedy}."
    found = " ".join(character for character in offending(value) if character != ",")
    return f"Quote a value with {found or 'such signs'}: {remedy}."


def _quoted(value: str) -> str:
    """Return a text in quotes, or a list of texts with quotes around each that needs them."""
    if not (value.startswith("[") and value.endswith("]")):
        return quoted(value)
    return f"[{','.join(quoted(part.strip()) for part in value[1:-1].split(','))}]"
