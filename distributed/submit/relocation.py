"""The words of a command as they hold in the working directory of a job: paths, plug-ins."""

from __future__ import annotations

from pathlib import Path

from heliotrope.config.files import named_experiment, own_experiment
from heliotrope.registry import Source
from heliotrope.shell import quoted

from .base import Command
from .package import Package

__all__ = ["relocated"]

_PATHS = ("run", "input", "output", "ledger")
"""Keys of commands that are no mode, which name a file or a directory."""

_RUN_PATHS = ("data.path", "data.test", "privacy.ledger")
"""Keys of a run that do: as they are typed, if they are not among the paths of a command."""

_VERBS_OF_DIRECTORIES = ("compare", "runs", "watch")
"""Commands that take directories without a key."""

_SUBCOMMANDS = ("diff", "rm")  # of `runs`


def relocated(command: Command, package: Package) -> tuple[str, ...]:
    """Return the words of `command` for a job whose working directory holds `package`.

    Code that lies elsewhere is added to the package. Other paths become absolute unless they are
    in the package: data and results are where both machines see them.
    """
    verb, *arguments = command.words
    if verb in _VERBS_OF_DIRECTORIES:
        arguments = [_directory(word, package) for word in arguments]
    words = [verb, *(_word(word, package) for word in arguments)]
    for key, path in command.paths.items():
        name = package.name_of(path) or str(path)
        words = [word for word in words if word.partition("=")[0].lstrip("+") != key]
        words.append(f"{key}={quoted(name)}")
    named = [each for each in command.plugins if each.distribution is None]
    there = [_plugin(each, package) for each in named]
    if any(name != each.name for name, each in zip(there, named, strict=True)):
        words = [word for word in words if not word.lstrip("+").startswith("plugins=")]
        words.append(f"plugins=[{','.join(quoted(name) for name in there)}]")
    return tuple(words)


def _word(word: str, package: Package) -> str:
    """Return an argument with the paths in it, if it has any, as they hold for the job."""
    key, equals, value = word.partition("=")
    if key in _PATHS and equals:
        return f"{key}={_path(value, package)}"
    # A sweep goes over several values; what else Hydra can list them by is left as it is.
    values = [] if set(value) & set("\"'()[]{}$") else value.split(",")
    if key == "experiment":
        return f"{key}={','.join(_experiment(each, package) for each in values or [value])}"
    if key.lstrip("+") in _RUN_PATHS and values:
        paths = [quoted(_path(each, package)) if each != "null" else each for each in values]
        return f"{key}={','.join(paths)}"
    return word


def _directory(word: str, package: Package) -> str:
    """Return an argument without a key, as it holds for the job."""
    if word in _SUBCOMMANDS or "=" in word or "://" in word:  # the last is a storage
        return word
    return _path(word, package)


def _experiment(value: str, package: Package) -> str:
    """Return the choice of an experiment; one's own file is added if it is elsewhere."""
    if own_experiment(value) is None:
        return value
    path = named_experiment(value)
    assert path is not None
    path = path.resolve()
    return quoted(package.with_code(path, {path.name: path}))


def _path(text: str, package: Package) -> str:
    path = Path(text).absolute()
    return package.name_of(path) or str(path)


def _plugin(source: Source, package: Package) -> str:
    """Return how `plugins=[...]` names a plug-in there; its code is added if it is elsewhere."""
    path, folder = Path(source.path), Path(source.folder)
    if source.module is not None:
        if package.name_of(path) is None:
            above = f"{path.name}/" if source.is_folder else ""
            package.files |= {f"{above}{name}": folder / name for name in source.files}
        return source.module
    above = f"{path.name}/" if source.is_folder else ""
    return package.with_code(path, {f"{above}{name}": folder / name for name in source.files})
