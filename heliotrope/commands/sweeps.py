"""Jobs of a sweep: each has a directory, which it finds again by its overrides.

A sweep that is resumed runs those that are not completed, and ends with one table and one report.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from heliotrope.commands.folds import fold_of
from heliotrope.commands.output import say
from heliotrope.config import Mode, Run, from_resolved
from heliotrope.config.redaction import without_passwords
from heliotrope.errors import ConfigError, RunDirectoryError
from heliotrope.runs.directory import RunDirectory, flat
from heliotrope.system.console import plain_console
from heliotrope.system.durable import write_whole
from heliotrope.system.redaction import masked

__all__ = ["Job", "directory_of", "is_completed", "note", "place", "summarise"]

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

    def of_fold(self, fold: int) -> Job:
        """Return the job of one of its folds."""
        own = frozenset({f"fold={fold}"})
        return Job(self.overrides | own, self.swept | own)

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
    read = {path.parent: _read(path) for path in sorted(root.glob(f"*/{_NOTE}"))}
    others = {path: other for path, other in read.items() if other is not None}
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


def note(job: Job, directory: Path, *, only_if_empty: bool) -> None:
    """Leave in its directory what a job is, unless there is a job, or any file, already.

    A file that cannot be read as one, such as of a full disk, is written anew.
    """
    path = directory / _NOTE
    with suppress(OSError):  # a directory that takes no file is refused when the run claims it
        if any(directory.iterdir()) if only_if_empty else _read(path) is not None:
            return
        saved = {"overrides": sorted(job.overrides), "swept": sorted(job.swept)}
        write_whole(path, json.dumps(saved).encode())


def is_completed(run: Run, mode: Mode, directory: Path) -> bool:
    """Return whether the directory has the result of this very run: with no key changed."""
    there = RunDirectory(directory)
    try:
        result = json.loads(there.result.read_text())
        before = flat(asdict(from_resolved(there.config, with_plugins=False)))
    except (ConfigError, OSError, ValueError):  # not there, or damaged
        return False
    if not isinstance(result, dict) or result.get("mode") != mode:
        return False
    now = flat(asdict(without_passwords(run)))
    changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
    return changed <= {"resume", "sweep.parallel"}


def place(directory: Path) -> tuple[int, str, int]:
    """Return what jobs of a sweep are sorted by: their directory's number, and then their fold."""
    fold = fold_of(directory)
    name = directory.name if fold is None else directory.parent.name
    number, name = (int(name), "") if name.isdecimal() else (-1, name)
    return number, name, -1 if fold is None else fold


def summarise(directories: Sequence[Path], whole: Path) -> None:
    """Print one table of the jobs that are done, and write one report in the directory of all."""
    from heliotrope.report import comparison_table, read_run, write_report

    with suppress(RunDirectoryError):  # a job of a caller's own that leaves no run
        runs = [read_run(directory) for directory in directories]
        console = plain_console(soft_wrap=False)
        console.print(comparison_table(runs, console.width))
        try:
            say(f"report: {write_report(runs, whole / 'report.html')}")
        except ConfigError as error:  # the runs are there all the same
            sys.stderr.write(f"error: {error}\n")


def _read(path: Path) -> Job | None:
    """Return the job that a file says; None if it is not there, or damaged."""
    try:
        saved = json.loads(path.read_text())
        return Job(frozenset(saved["overrides"]), frozenset(saved["swept"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
