"""A directory kept in a storage that fsspec knows: s3://, gs://, file:// and others.

The one copy goes to where the job runs, the other to where a retry, or whoever submitted it, finds
it. A checkpoint is whole there once its manifest is, which is why that is written last.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from heliotrope.errors import ConfigError, RunFailedError

__all__ = ["Storage"]

_HERE_ONLY = {".lock"}  # who holds a directory on this machine
_LAST = {"manifest.json": 1, "result.json": 2}  # what says that other files are whole
_APPENDED = ".jsonl"  # files that only grow, until a run is resumed
_COMPARED = 256  # bytes before what was appended, by which a file that was rewritten is known


class Storage:
    """What `url` holds of the files of `directory`; `named` is how a user gave it.

    Raises `ConfigError` naming it if it cannot be reached: an unknown protocol, a missing package.
    """

    def __init__(self, url: str, directory: Path, named: str | None = None) -> None:
        self._directory = directory
        self._named = named or f"storage={url}"
        fsspec: Any = importlib.import_module("fsspec")
        try:
            self._files, path = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(
                f"{self._named} cannot be used: {error}. Name a folder such as file:///shared/runs "
                "or s3://bucket/runs; the package of its protocol is needed here and there."
            ) from error
        self._root = PurePosixPath(path)
        self._saved: dict[str, tuple[int, int]] = {}
        self._seen: dict[str, str] = {}  # by relative name, what the storage said of a file

    def bring(self) -> int:
        """Copy all files from the storage into the directory; return how many there were.

        Raises `RunFailedError` if the storage cannot be read.
        """
        try:
            found = self._found()
            for name in found:
                self._copy(name)
        except OSError as error:
            raise self._unreadable(error) from error
        self._saved = self._stamps()
        return len(found)

    def follow(self, names: Collection[str]) -> None:
        """Copy the files of these names that are new or have changed; remove what is gone there.

        Of a file that has grown, only what was appended is fetched. Raises `RunFailedError` if the
        storage cannot be read.
        """
        try:
            found = {n: f for n, f in self._found().items() if PurePosixPath(n).name in names}
            for name, facts in found.items():
                if self._seen.get(name) != repr(facts):
                    if not (name.endswith(_APPENDED) and self._append(name, int(facts["size"]))):
                        self._copy(name)
                    self._seen[name] = repr(facts)
            for name in self._seen.keys() - found.keys():
                (self._directory / name).unlink(missing_ok=True)
                del self._seen[name]
        except OSError as error:
            raise self._unreadable(error) from error

    def _found(self) -> dict[str, Mapping[str, Any]]:
        """Return what the storage says of each file, by its relative name."""
        self._files.invalidate_cache()
        root = str(self._root)
        found = self._files.find(root, detail=True) if self._files.exists(root) else {}
        names = {PurePosixPath(each).relative_to(root): facts for each, facts in found.items()}
        return {str(name): facts for name, facts in names.items() if ".." not in name.parts}

    def _copy(self, name: str) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.tmp")
        self._files.get_file(str(self._root / name), str(unfinished))
        unfinished.replace(path)

    def _append(self, name: str, size: int) -> bool:
        """Fetch what was appended to a file; return False if it is not the one that is here."""
        path = self._directory / name
        known = path.stat().st_size if path.exists() else 0
        if not 0 < known <= size:
            return False
        compared = min(known, _COMPARED)
        there = self._files.cat_file(str(self._root / name), start=known - compared, end=size)
        with path.open("r+b") as file:
            file.seek(known - compared)
            if file.read(compared) != there[:compared]:
                return False
            file.write(there[compared:])
        return True

    def _unreadable(self, error: OSError) -> RunFailedError:
        return RunFailedError(f"{self._named} cannot be read: {error}.")

    def save(self) -> None:
        """Copy what is new or has changed into the storage, and remove there what is gone here.

        Raises `RunFailedError` if the storage takes no more.
        """
        now = self._stamps()
        changed = [name for name, stamp in now.items() if self._saved.get(name) != stamp]
        try:
            for name in sorted(changed, key=lambda name: _LAST.get(PurePosixPath(name).name, 0)):
                self._save(name, now[name])
            for name in self._saved.keys() - now.keys():
                self._files.rm_file(str(self._root / name))
                del self._saved[name]
        except OSError as error:
            raise RunFailedError(
                f"{self._named} could not be written: {error}. Send the same words again to "
                "continue the run once it can."
            ) from error

    def _save(self, name: str, stamp: tuple[int, int]) -> None:
        path, there = self._directory / name, str(self._root / name)
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # of a checkpoint that is not kept any longer
            return
        self._files.makedirs(str((self._root / name).parent), exist_ok=True)
        self._files.pipe_file(there, content)
        self._saved[name] = stamp

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Return size and time of each file that is to be saved, by its relative name."""
        found = {}
        for path in self._directory.rglob("*"):
            name = path.relative_to(self._directory).as_posix()
            if path.name in _HERE_ONLY or ".tmp" in name:
                continue
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file():
                found[name] = (state.st_size, state.st_mtime_ns)
        return found
