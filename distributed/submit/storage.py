"""A directory kept in a storage that fsspec knows: s3://, gs://, file:// and others.

The one copy goes to where the job runs, the other to where a retry, or whoever submitted it, finds
it. A checkpoint is whole there once its manifest is, which is why that is written last.
"""

from __future__ import annotations

import importlib
from pathlib import Path, PurePosixPath
from typing import Any

from heliotrope.errors import ConfigError, RunFailedError

__all__ = ["Storage"]

_HERE_ONLY = {".lock"}  # who holds a directory on this machine
_LAST = {"manifest.json": 1, "result.json": 2}  # what says that other files are whole


class Storage:
    """What `url` holds of the files of `directory`.

    Raises `ConfigError` naming `storage` if it cannot be reached: an unknown protocol, a missing
    package.
    """

    def __init__(self, url: str, directory: Path) -> None:
        self._url, self._directory = url, directory
        fsspec: Any = importlib.import_module("fsspec")
        try:
            self._files, path = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(
                f"storage={url} cannot be used: {error}. Name a folder such as file:///shared/runs "
                "or s3://bucket/runs; the package of its protocol is needed here and there."
            ) from error
        self._root = PurePosixPath(path)
        self._saved: dict[str, tuple[int, int]] = {}

    def bring(self) -> int:
        """Copy all files from the storage into the directory; return how many there were.

        Raises `RunFailedError` if the storage cannot be read.
        """
        try:
            self._files.invalidate_cache()
            found = self._files.find(str(self._root)) if self._files.exists(str(self._root)) else []
            for each in found:
                path = self._directory / PurePosixPath(each).relative_to(self._root)
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished = path.with_name(f".{path.name}.tmp")
                self._files.get_file(each, str(unfinished))
                unfinished.replace(path)
        except OSError as error:
            raise RunFailedError(f"storage={self._url} cannot be read: {error}.") from error
        self._saved = self._stamps()
        return len(found)

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
                f"storage={self._url} could not be written: {error}. Send the same words again to "
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
