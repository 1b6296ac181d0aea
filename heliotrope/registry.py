"""What a name in a configuration can choose: one entry a name, with its keys and its builder.

A choice is made by a function, or a class, with typed keyword parameters, which are the keys that
it has in the configuration::

    def cnn(task: Task, *, channels: Sequence[int] = (32, 64), kernel_size: int = 5) -> nn.Module:
        '''Convolutions over [B, C, H, W], each halving H and W, then dense layers.

Parameters
----------
        channels
            Filters of each convolution.
        kernel_size
            Height and width of the filters.
        '''

A user's entries come in through `heliotrope.plugin`; ours are written the same way and listed in
`heliotrope.builtin`.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from heliotrope.builtin import BUILT_IN, Group
from heliotrope.errors import ConfigError, closest
from heliotrope.modes import mode_module
from heliotrope.signatures import Signature, inspected, parsed

__all__ = [
    "Entry",
    "Group",
    "Source",
    "adopt",
    "entry",
    "names",
    "path_of",
    "plug_ins",
    "register",
    "restore",
    "snapshot",
]

_PACKAGE = Path(__file__).resolve().parent

# What the functions of a group are given if they name it; their other parameters are keys.
_GIVEN: dict[Group, frozenset[str]] = {
    "model": frozenset({"task"}),
    "data": frozenset(),
    "task": frozenset({"facts", "label_smoothing"}),
    "metric": frozenset({"task"}),
    "partition": frozenset({"traits", "generator"}),
    "strategy": frozenset({"facts", "client_learning_rate"}),
    "privacy": frozenset(),
    "attack": frozenset(),
    "secure_aggregation": frozenset(),
    "record_privacy": frozenset(),
    "optimizer": frozenset({"params"}),
    "schedule": frozenset({"done", "step", "decay_every", "decay_factor"}),
    "cluster": frozenset(),
    "sampler": frozenset({"seed"}),
    "pruner": frozenset(),
}


@dataclass(frozen=True, eq=False)
class Source:
    """A plug-in: code that a user named, as it was read.

    Parameters
    ----------
    path
        Where it lies: a file, or a folder.
    sha256
        Of the file's bytes; of a folder, of its files' names and sums.
    files
        What its files hold, by their names relative to the folder.
    module
        The importable module that was named; None if a path was.
    distribution
        Name and version of the installed package that brings it by an entry point.
    """

    path: str
    sha256: str
    files: Mapping[str, bytes]
    module: str | None = None
    distribution: str | None = None

    @property
    def name(self) -> str:
        """What names it in `plugins=[...]`, from any folder."""
        return self.module or self.path

    @property
    def is_folder(self) -> bool:
        """Whether it is a package, not one file."""
        return not self.path.endswith(".py")

    @property
    def folder(self) -> str:
        """The folder of its files."""
        return self.path if self.is_folder else str(Path(self.path).parent)

    @property
    def top(self) -> str:
        """The top-level module that it is in this process, and in every other.

        Files of one name in two folders are two modules: classes are found by their module's name.
        """
        if self.module is not None:
            return self.module.partition(".")[0]
        digest = hashlib.sha256(self.path.encode()).hexdigest()[:8]
        return f"heliotrope_plugin_{Path(self.path).stem}_{digest}"

    def entry(self) -> dict[str, str]:
        """Return what a run's config.yaml says of it."""
        said = {"path": self.path, "sha256": self.sha256}
        also = {"module": self.module, "distribution": self.distribution}
        return said | {key: value for key, value in also.items() if value is not None}


@dataclass(frozen=True, eq=False)
class Entry:
    """What a name chooses.

    Parameters
    ----------
    group, name
        Such as model and cnn, for `model=cnn`.
    signature
        Its keys, and what else it takes.
    where
        File and line, for messages.
    target
        The function or class; of ours, where it is: `module:name`.
    source
        The plug-in file that it is of; None for ours, and for what was registered elsewhere.
    """

    group: Group
    name: str
    signature: Signature
    where: str
    target: Callable[..., Any] | str
    source: Source | None = None

    @property
    def built_in(self) -> bool:
        """Whether it is one of ours."""
        return isinstance(self.target, str)

    @cached_property
    def builder(self) -> Callable[..., Any]:
        """The function or class; of ours, its module is imported here."""
        if not isinstance(self.target, str):
            return self.target
        module, _, function = self.target.partition(":")
        top, _, rest = module.partition(".")
        found = importlib.import_module(module) if top == _PACKAGE.name else _of_mode(top, rest)
        builder: Callable[..., Any] = getattr(found, function)
        return builder

    def build(self, values: Mapping[str, Any], **given: Any) -> Any:
        """Call the function with the `values` of its keys, and with what it takes of `given`."""
        taken = {name: value for name, value in given.items() if name in self.signature.given}
        return self.builder(**taken, **{name: values[name] for name in self.signature.keys})


_plug_ins: dict[Group, dict[str, Entry]] = {group: {} for group in get_args(Group)}


def names(group: Group) -> list[str]:
    """Return the names of a group: ours, then those of the plug-ins that are loaded."""
    return [*BUILT_IN[group], *_plug_ins[group]]


def plug_ins(group: Group) -> list[Entry]:
    """Return the entries of a group that plug-ins have registered."""
    return list(_plug_ins[group].values())


def any_of(source: Source) -> bool:
    """Return whether a plug-in has registered anything."""
    named = {each.source.name for group in _plug_ins for each in plug_ins(group) if each.source}
    return source.name in named


def entry(group: Group, name: str) -> Entry:
    """Return the entry of a name; `ConfigError` lists the names that there are."""
    if name in BUILT_IN[group]:
        return _built_in(group, name)
    if name not in _plug_ins[group]:
        known = names(group)
        raise ConfigError(f"{group}={name} is not one of {', '.join(known)}.{closest(name, known)}")
    return _plug_ins[group][name]


def register(
    group: Group,
    name: str,
    target: Callable[..., Any],
    where: str,
    source: Source | None = None,
) -> None:
    """Add an entry of a plug-in: `group=name` builds `target`, which `source` holds.

    Raises `ConfigError` naming `where` if its name is taken, or its parameters cannot be keys.
    """
    if not name.isidentifier():
        raise ConfigError(
            f"{where}: what is registered as {group} is called {name}, which cannot be chosen. "
            "Write a function with def, whose name it gets."
        )
    if name in names(group):
        raise ConfigError(f"{where}: there is a {group}={name} already. Choose another name.")
    signature = inspected(target, _GIVEN[group], where, f"{group}={name}")
    if "name" in signature.keys:
        raise ConfigError(
            f"{where}: {group}={name} has a parameter called name, but {group}.name says which "
            "one is chosen. Call the parameter otherwise."
        )
    if group == "schedule" and signature.keys:
        raise ConfigError(
            f"{where}: schedule={name} has a parameter {next(iter(signature.keys))}, which nothing "
            f"sets. Take some of {', '.join(sorted(_GIVEN[group]))}."
        )
    if group == "optimizer" and "lr" not in signature.keys:
        raise ConfigError(
            f"{where}: optimizer={name} has no parameter lr, which schedules change. Add lr: float."
        )
    _plug_ins[group][name] = Entry(group, name, signature, where, target, source)


def adopt(source: Source) -> None:
    """Note `source` for the entries of its modules that were registered before it was named."""
    for entries in _plug_ins.values():
        for name, each in entries.items():
            module = getattr(each.target, "__module__", "")
            if each.source is None and module.partition(".")[0] == source.top:
                entries[name] = replace(each, source=source)


def snapshot() -> dict[Group, dict[str, Entry]]:
    """Return what plug-ins have registered, for `restore`."""
    return {group: dict(entries) for group, entries in _plug_ins.items()}


def restore(before: Mapping[Group, Mapping[str, Entry]]) -> None:
    """Go back to what was registered at a `snapshot`."""
    for group, entries in _plug_ins.items():
        entries.clear()
        entries.update(before[group])


def _of_mode(mode: str, name: str) -> ModuleType:
    """Import a module of a mode beside those that run: a checkout may have it by two names."""
    parent = name.rpartition(".")[0]
    for package in (mode, f"{_PACKAGE.name}.{mode}"):
        if f"{package}.{parent}" in sys.modules:
            return importlib.import_module(f"{package}.{name}")
    return mode_module(mode, name)


@cache
def _built_in(group: Group, name: str) -> Entry:
    target = BUILT_IN[group][name]
    module, _, function = target.partition(":")
    path = path_of(module)
    signature = parsed(path, function, _GIVEN[group])
    return Entry(group, name, signature, f"{path}, line {signature.line}", target)


def path_of(module: str) -> Path:
    """Return the file of a module of ours, in a checkout or in a wheel, without importing it."""
    top, *rest = module.split(".")
    folder = _PACKAGE
    if top != _PACKAGE.name:
        inside = _PACKAGE / top
        folder = inside if inside.is_dir() else _PACKAGE.parent / top
    return folder.joinpath(*rest).with_suffix(".py")
