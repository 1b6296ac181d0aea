"""Imports of plug-ins' modules from what was read and hashed, not from what a disk has later.

Compiled files beside them, which nobody has hashed, are not used. On a node that does not have the
files, they are written to a temporary folder, for what a plug-in reads beside its code.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from importlib.abc import ExecutionLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from heliotrope.registry import Source

__all__ = ["FINDER", "find_plugins", "root_of"]


class _SourceLoader(ExecutionLoader):
    """Executes one file of a plug-in."""

    def __init__(self, source: Source, file: str) -> None:
        self._content = source.files[file]
        self._path = str(root_of(source) / file)

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        return importlib.util.decode_source(self._content)

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002
        return self._path

    def is_package(self, fullname: str) -> bool:  # noqa: ARG002
        return Path(self._path).name == "__init__.py"


class _AliasLoader(Loader):
    """Gives a module of a folder under the short name by which its siblings import it."""

    def __init__(self, fullname: str) -> None:
        self._fullname = fullname
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002
        module = importlib.import_module(self._fullname)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # which the import system has replaced by the alias's


class _PluginFinder(MetaPathFinder):
    """Finds the modules of the plug-ins: before Python's own finders."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}  # by the name of their top-level module
        self.aliases: dict[str, str] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        top, _, inner = fullname.partition(".")
        if top in self.aliases:
            return self._alias(fullname, f"{self.aliases[top]}.{inner}".rstrip("."))
        source = self.sources.get(top)
        if source is None:
            return None
        if not source.is_folder:
            file = None if inner else Path(source.path).name
        else:
            stem = inner.replace(".", "/")
            tried = (f"{stem}/__init__.py".lstrip("/"), f"{stem}.py")
            file = next((name for name in tried if name in source.files), None)
        if file is not None:
            return importlib.util.spec_from_loader(fullname, _SourceLoader(source, file))
        if inner:
            return None  # what is no Python file, and is found beside them
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(root_of(source))]
        return spec

    def _alias(self, alias: str, fullname: str) -> ModuleSpec | None:
        if importlib.util.find_spec(fullname) is None:
            return None
        return ModuleSpec(alias, _AliasLoader(fullname))

    def forget_aliases(self) -> None:
        """Let the siblings of another folder have the same names."""
        for name in [name for name in sys.modules if name.partition(".")[0] in self.aliases]:
            del sys.modules[name]
        self.aliases.clear()


class _SiblingFinder(MetaPathFinder):
    """Finds `import sibling` in a folder, where no module of that name is installed."""

    def __init__(self, executing: Callable[[], Source | None]) -> None:
        self._executing = executing

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        source = self._executing()
        among = list(FINDER.sources.values()) if source is None else [source]
        tops = [
            each.top
            for each in among
            if each.module is None
            and each.is_folder
            and {f"{fullname}.py", f"{fullname}/__init__.py"} & each.files.keys()
        ]
        if len(tops) > 1:
            raise ImportError(
                f"{fullname} is in several folders of plug-ins. Write 'from . import {fullname}'."
            )
        if not tops:
            return None
        FINDER.aliases[fullname] = f"{tops[0]}.{fullname}"
        return FINDER.find_spec(fullname, path, target)


FINDER = _PluginFinder()


def find_plugins(executing: Callable[[], Source | None]) -> None:
    """Let Python find the modules of plug-ins in this process."""
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
        sys.meta_path.append(_SiblingFinder(executing))


@cache
def root_of(source: Source) -> Path:
    """Return the folder of a plug-in's files, which is made where this machine has them not."""
    path = Path(source.path)
    root = path if source.is_folder else path.parent
    if all(_holds(root / name, content) for name, content in source.files.items()):
        return root
    made = tempfile.TemporaryDirectory(prefix="heliotrope-plugin-")
    _TEMPORARY.append(made)
    for name, content in source.files.items():
        file = Path(made.name, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return Path(made.name)


_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def _holds(file: Path, content: bytes) -> bool:
    try:
        return file.read_bytes() == content
    except OSError:
        return False
