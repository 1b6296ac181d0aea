"""Which plug-ins a command loads: those that it names, those installed, those of a run.

A plug-in is code, so one is executed only if this user named it on a command line, or its SHA-256
before: what a run's directory says about plug-ins is not enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from heliotrope import registry
from heliotrope.errors import ConfigError
from heliotrope.plugin_loading.execution import install, loaded
from heliotrope.plugin_loading.memory import remember, remembered
from heliotrope.plugin_loading.reading import read, read_again, read_installed
from heliotrope.registry import Source
from heliotrope.shell import quoted

__all__ = ["load", "load_installed", "named", "named_in", "recall"]

_by_written: dict[str, Source] = {}  # by what a command line or an experiment calls them


def named_in(overrides: Iterable[str]) -> list[str] | None:
    """Return what `plugins=[...]` names among overrides; None if it is not among them."""
    found = [text for text in overrides if text.lstrip("+").startswith("plugins=")]
    return [name for text in found for name in _listed(text)] if found else None


def load(names: Sequence[str], base: Path = Path(), why: str | None = None) -> None:
    """Load plug-ins that this user named, and remember their hashes.

    Relative paths count from `base`; errors name `why`, the experiment file if one named them.
    Raises `ConfigError` if one is missing, fails, or registers nothing.
    """
    for name in names:
        source = install(read(name, base, why or f"plugins=[{name}]"))
        if not registry.any_of(source):
            raise ConfigError(
                f"{source.path} registers nothing: decorate a function with @plugin.model, "
                "@plugin.data or another of heliotrope.plugin, or leave it out of plugins."
            )
        _by_written[name] = source
        remember(_by_written[name].sha256)


def load_installed() -> None:
    """Load the plug-ins of installed packages: who installs them trusts them."""
    for source in read_installed():
        install(source)


def named(written: str) -> Source | None:
    """Return the plug-in that this process has loaded by a name of a command or experiment."""
    return _by_written.get(written)


def recall(entries: Iterable[Mapping[str, Any]], told_by: str, *, trusted: bool = False) -> None:
    """Load the plug-ins that a run's config names, unless this process has them.

    Raises `ConfigError` if a file has changed since, or if this user never named it on a
    command line; `trusted` says that the config is this user's own command.
    """
    for entry in entries:
        recorded = Source(files={}, **entry)
        here = next((each for each in loaded() if each.name == recorded.name), None)
        if here is None and recorded.distribution and not trusted:
            raise ConfigError(
                f"{told_by} was trained with a plug-in of the package {recorded.distribution}, "
                "which is not installed. Install it."
            )
        if here is None and not trusted and recorded.sha256 not in remembered():
            raise ConfigError(
                f"{told_by} was trained with the code of {recorded.name}, which was never named "
                "on a command line here. Name it if you trust it: "
                f"plugins=[{quoted(recorded.name)}]."
            )
        source = here or read_again(recorded, told_by)
        if source.sha256 != recorded.sha256:
            raise _another_version(recorded, source, told_by)
        install(source)


def _another_version(recorded: Source, source: Source, told_by: str) -> ConfigError:
    there, here = (f"{each.sha256[:12]}..." for each in (recorded, source))
    if recorded.distribution:
        there, here = (f"{each.distribution or each.path}" for each in (recorded, source))
        was = f"it was {there}, and is {here} now. Install that one"
    else:
        was = f"its SHA-256 was {there}, and is {here} now. Put that version back"
    return ConfigError(f"{told_by} was trained with another version of {source.path}: {was}.")


def _listed(override: str) -> list[str]:
    # Hydra takes a quarter of a second to import, and a deployed client never composes a config.
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
        value: Any = None if parsed.is_sweep_override() else parsed.value()
    except HydraException:
        value = None
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise ConfigError(
            f"{override} is no list of files or modules. Write plugins=[mine.py], or with quotes "
            "around a path with special characters: 'plugins=[\"my file.py\"]'."
        )
    return [str(name) for name in value]
