"""A run's files on a node that does not share the run's directory with the driver.

A worker there has a directory of its own. It begins with the driver's files that a worker reads;
what the worker writes comes to the driver, through Ray's object store, while it trains. So the
driver has the checkpoints, and the storage that its directory may be mirrored in, when the run goes
on, on whatever node that is.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from heliotrope.runs.checkpoint import path_of
from heliotrope.runs.directory import RunDirectory

from ..attempt import RunAttempt
from ..strategies.initial_weights import initial_weights_file

__all__ = ["Changes", "NodeDirectory", "given_to_nodes", "is_part", "write_changes"]

_APPENDED = {".jsonl", ".log"}  # what is in such a file does not change: it gets longer
_OWN = {".lock", ".workers"}  # locks, which mean something to the processes of one machine
_MANIFEST = "manifest.json"  # says that the files beside it are whole: written last
_UNFINISHED = ".tmp"  # in names of what is being written


@dataclass(frozen=True)
class Changes:
    """What has changed in a directory, by relative name.

    Parameters
    ----------
    whole
        Content of new and changed files, in the order in which they are to be written.
    appended
        What logs have more than before: whole lines.
    gone
        Files that are no longer there.
    """

    whole: Mapping[str, bytes] = field(default_factory=dict)
    appended: Mapping[str, bytes] = field(default_factory=dict)
    gone: tuple[str, ...] = ()


def given_to_nodes(attempt: RunAttempt) -> dict[str, bytes]:
    """Return the driver's files that a worker of `attempt` reads, by relative name.

    Of checkpoints that it does not go on from these are the manifests: for number 0 to know which
    are there, and to remove those that are not kept.
    """
    run_dir = RunDirectory(attempt.directory)
    paths = [run_dir.metrics, run_dir.ledger, initial_weights_file(run_dir.path)]
    if attempt.checkpoint is not None:
        paths += run_dir.checkpoints.glob(f"[0-9]*/{_MANIFEST}")
        paths += path_of(run_dir.checkpoints, attempt.checkpoint).iterdir()
    return {
        path.relative_to(run_dir.path).as_posix(): path.read_bytes()
        for path in paths
        if path.is_file()
    }


def is_part(name: str) -> bool:
    """Return whether a file belongs to one process's part of a checkpoint that is not whole yet."""
    return _UNFINISHED in PurePosixPath(name).parent.name


def write_changes(root: Path, changes: Changes) -> None:
    """Do to the directory `root` what was done to another; `OSError` if that is not possible."""
    for name, content in changes.whole.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}{_UNFINISHED}")
        unfinished.write_bytes(content)
        unfinished.replace(path)
    for name, content in changes.appended.items():
        with (root / name).open("ab") as file:
            file.write(content)
    for name in changes.gone:
        path = root / name
        path.unlink(missing_ok=True)
        if path.name == _MANIFEST:  # without it, the others are no checkpoint
            shutil.rmtree(path.parent, ignore_errors=True)
        elif path.parent != root and path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()


class NodeDirectory:
    """The directory of the worker `rank`, which begins with the files that are `given`.

    Number 0 writes what the run leaves; the others their logs, and their parts of checkpoints.
    """

    def __init__(self, rank: int, given: Mapping[str, bytes]) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="heliotrope-"))
        self._part = f"part.{rank}.json" if rank else None
        self._seen: dict[str, tuple[int, int]] = {}  # size and time of a file, as last told
        self.write(Changes(whole=given))

    def write(self, changes: Changes) -> None:
        """Write what comes from the driver, which is not told it again."""
        write_changes(self.path, changes)
        for name in changes.whole:
            if not is_part(name):
                self._seen[name] = _stamp(self.path / name)

    def changes(self) -> Changes:
        """Return what has changed here since the last call. A part that is told is removed."""
        whole, appended, found = {}, {}, self._found()
        for name, stamp in found.items():
            if self._seen.get(name) == stamp:
                continue
            try:
                if PurePosixPath(name).suffix in _APPENDED:
                    self._seen[name], appended[name] = self._more(name, stamp)
                else:
                    whole[name] = (self.path / name).read_bytes()
                    self._seen[name] = stamp
            except FileNotFoundError:  # of a checkpoint that is not kept any longer
                continue
        gone = tuple(name for name in self._seen.keys() - found.keys() if not is_part(name))
        for name in gone:
            del self._seen[name]
        for name in whole:
            if is_part(name):
                (self.path / name).unlink()
                del self._seen[name]
        return Changes(whole, {name: more for name, more in appended.items() if more}, gone)

    def remove(self) -> None:
        """Remove all of it: the worker has ended, and its last changes are told."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _found(self) -> dict[str, tuple[int, int]]:
        """Return what is there to tell of, with its stamp, in the order to write it in."""
        names = {path.relative_to(self.path).as_posix() for path in self.path.rglob("*")}
        found = {}
        for name in sorted(filter(lambda each: self._is_told(each, names), names), key=_order):
            try:
                if (self.path / name).is_file():
                    found[name] = _stamp(self.path / name)
            except FileNotFoundError:
                continue
        return found

    def _is_told(self, name: str, names: Iterable[str]) -> bool:
        path = PurePosixPath(name)
        if is_part(name):  # only if it is ours, and whole
            own = self._part is not None and f"{path.parent}/{self._part}" in names
            return own and _UNFINISHED not in path.name
        return path.name not in _OWN and _UNFINISHED not in name

    def _more(self, name: str, stamp: tuple[int, int]) -> tuple[tuple[int, int], bytes]:
        """Return the whole lines that a log has got, and a stamp of the log up to there."""
        before = self._seen.get(name, (0, 0))[0]
        with (self.path / name).open("rb") as file:
            file.seek(before)
            more = file.read()
        more = more[: more.rfind(b"\n") + 1]
        return (before + len(more), stamp[1]), more


def _order(name: str) -> tuple[bool, str]:
    base = PurePosixPath(name).name
    return base == _MANIFEST or base.startswith("part."), name


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns
