"""Jobs of a sweep: each has a directory, which it finds again by its overrides."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from heliotrope.system.redaction import masked

__all__ = ["Job", "directory_of", "note"]

_NOTE = "overrides.json"


@dataclass(frozen=True)
class Job:
    """The overrides of a job, and which of them other jobs of its sweep do not have."""

    overrides: frozenset[str]
    swept: frozenset[str]

    @classmethod
    def of(cls, overrides: Sequence[str], typed: Collection[str]) -> Job:
        """Return the job of `overrides`, of which those that were `typed` hold for all jobs."""
        own = frozenset(masked(each) for each in overrides if not each.startswith("resume="))
        return cls(own, own - frozenset(map(masked, typed)))

    def is_that_of(self, other: Job) -> bool:
        """Return whether both have the same values of what either sweep went over."""
        return self.swept <= other.overrides and other.swept <= self.overrides


def directory_of(job: Job, numbered: Path, taken: Collection[Path]) -> Path:
    """Return where a job goes on that is resumed: where one of its overrides has begun.

    `numbered` is the directory that Hydra made for it, by its place in the sweep. If there is
    no such job it is that, or the next number if that belongs to another job. Those that are
    `taken` belong to jobs before it.
    """
    root = numbered.parent
    others = {path.parent: _read(path) for path in sorted(root.glob(f"*/{_NOTE}"))}
    same = [path for path, other in others.items() if path not in taken and job.is_that_of(other)]
    same.sort(key=lambda path: others[path].overrides != job.overrides)
    if same:
        found = same[0]
    elif numbered in others or numbered in taken:
        found = next(path for n in count() if not (path := root / str(n)).exists())
        found.mkdir()
    else:
        found = numbered
    if found != numbered:
        with suppress(OSError):  # it is not empty
            numbered.rmdir()
    return found


def note(job: Job, directory: Path) -> None:
    """Leave in its directory what a job is, unless there is a job already."""
    with suppress(FileExistsError), (directory / _NOTE).open("x") as file:
        json.dump({"overrides": sorted(job.overrides), "swept": sorted(job.swept)}, file)


def _read(path: Path) -> Job:
    saved = json.loads(path.read_text())
    return Job(frozenset(saved["overrides"]), frozenset(saved["swept"]))
