"""Executing a plug-in, once in a process, and knowing which one is being executed."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heliotrope import registry
from heliotrope.errors import ConfigError
from heliotrope.plugin_loading.importing import FINDER, find_plugins, root_of
from heliotrope.registry import Source
from heliotrope.system.signals import code_of

__all__ = ["executing", "exit_said", "install", "loaded", "raised", "refusing_exits"]

_SOURCES: dict[str, Source] = {}  # what has been executed in this process, by name
_executing: list[Source] = []


def loaded() -> list[Source]:
    """Return the plug-ins of this process, in the order in which they were loaded."""
    return list(_SOURCES.values())


def executing() -> Source | None:
    """Return the plug-in that is being executed, the innermost; None outside of any."""
    return _executing[-1] if _executing else None


def install(source: Source) -> Source:
    """Execute a plug-in once in this process, and return what it was executed from.

    Raises `ConfigError` naming file, line and error if it fails.
    """
    known = _SOURCES.get(source.name) or FINDER.sources.get(source.top)
    if known is not None and known.sha256 != source.sha256:
        raise ConfigError(f"{source.path} has changed since this process read it.")
    if source.name in _SOURCES:
        return _SOURCES[source.name]
    find_plugins(executing)
    before, modules = registry.snapshot(), set(sys.modules)
    native = source.top in sys.modules and source.top not in FINDER.sources
    if not native:
        FINDER.sources[source.top] = source
    FINDER.forget_aliases()
    _executing.append(source)
    try:
        importlib.import_module(source.module or source.top)
    except BaseException as error:
        if known is None:
            FINDER.sources.pop(source.top, None)
        for name in sys.modules.keys() - modules:
            if name.partition(".")[0] == source.top:
                del sys.modules[name]
        registry.restore(before)
        if isinstance(error, ConfigError) or not isinstance(error, Exception | SystemExit):
            raise
        where = _line(source, error) or source.path
        raise ConfigError(
            f"plug-in {where}: {type(error).__name__}: {error}. Mend the file."
        ) from error
    finally:
        _executing.pop()
        FINDER.forget_aliases()
    registry.adopt(source)  # what a module registered that was imported before
    return _SOURCES.setdefault(source.name, source)


def exit_said(error: SystemExit) -> str | None:
    """Return what to say of a plug-in that ends the process; None if something else does."""
    if code_of(error) is not None or not any(_line(source, error) for source in loaded()):
        return None
    return f"The code of a plug-in ends the process. {raised(error, 'Raise an error instead.')}"


@contextmanager
def refusing_exits() -> Iterator[None]:
    """Turn what a plug-in ends the process with, inside the block, into a `ConfigError`."""
    try:
        yield
    except SystemExit as error:
        if (said := exit_said(error)) is None:
            raise
        raise ConfigError(said) from error


def raised(error: BaseException, remedy: str = "Mend it.") -> str:
    """Return what was raised, in which line if that is a plug-in's, and the `remedy`, if any."""
    lines = [line for source in loaded() if (line := _line(source, error)) is not None]
    said = f"{type(error).__name__}: {error}".rstrip(" .:\n")
    where = f" in {lines[0]}" if lines else ""
    return f"{said}{where}. {remedy}" if remedy else f"{said}{where}"


def _line(source: Source, error: BaseException) -> str | None:
    """Return file and line of an error in a plug-in; None if it is of no line of it."""
    root = root_of(source)
    files = {str(root / name): str(Path(source.folder, name)) for name in source.files}
    if isinstance(error, SyntaxError) and error.filename in files:
        return f"{files[error.filename]}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{files[f.filename]}, line {f.lineno}" for f in frames if f.filename in files]
    return lines[-1] if lines else None
