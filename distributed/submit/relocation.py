"""The words of a command as they hold in the working directory of a job: paths, plug-ins."""

from __future__ import annotations

from pathlib import Path

from heliotrope.config.files import named_experiment, own_experiment
from heliotrope.registry import Source
from heliotrope.shell import quoted

from .base import Command
from .package import Package

__all__ = ["relocated"]

_PATHS = ("run", "input", "output")
"""Keys of commands that are no mode, which name a file or a directory."""


def relocated(command: Command, package: Package) -> tuple[str, ...]:
    """Return the words of `command` for a job whose working directory holds `package`.

    Code that lies elsewhere is added to the package. Other paths become absolute unless they are
    in the package: data and results are where both machines see them.
    """
    words = [_word(word, package) for word in command.words]
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
    """Return an argument with the path in it, if it is one, as it holds for the job."""
    key, equals, value = word.partition("=")
    if key == "experiment" and own_experiment(value) is not None:
        path = named_experiment(value)
        assert path is not None
        path = path.resolve()
        return f"experiment={quoted(package.with_code(path, {path.name: path}))}"
    if key in _PATHS and equals:
        path = Path(value).absolute()
        return f"{key}={package.name_of(path) or path}"
    return word


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
