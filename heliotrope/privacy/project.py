"""A project's privacy ledger: what all runs have spent that share a file, or may yet spend.

A run appends a line before it releases anything: how often it will have used which mechanisms when
it ends. This is what counts, until a later line of the same run takes its place: of a longer run,
or of one that has ended and gives back what it did not use. A run that was killed has not given
back anything. So at any time the file counts at least what was released.

Lines are appended under a lock of the file, in which a budget is checked, too.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from heliotrope.errors import LedgerError
from heliotrope.privacy.accountant import Spent
from heliotrope.privacy.lines import count_of, whole_lines
from heliotrope.privacy.mechanisms import (
    CorrelatedSums,
    GaussianMechanism,
    fields_of,
    mechanism_of,
)
from heliotrope.system.durable import sync_folder
from heliotrope.system.locks import NoLocksError, lock

__all__ = [
    "STATISTICS",
    "TRAINING",
    "Budget",
    "Entry",
    "People",
    "ProjectLedger",
    "Sweep",
    "added",
]

TRAINING, STATISTICS = "training", "statistics"
"""Purposes of what a run releases."""

_VERSION = 1
_LAST = 2.0**38  # seconds since 1970: some thousand years, which dates can have
_BEGINNING = b'{"ledger": '  # of every line


@dataclass(frozen=True)
class People:
    """Whose data a release is about.

    Parameters
    ----------
    source
        Where the training data is: the name of a dataset, or the path of a user's own.
    content
        A hash of it.
    unit
        Of whom one more or less is hidden: `client` or `record`.
    """

    source: str
    content: str
    unit: str

    def may_be(self, other: People) -> bool:
        """Return whether some may be in both: data that was moved, or mended, is of the same."""
        return self.source == other.source or self.content == other.content


@dataclass(frozen=True)
class Budget:
    """The epsilon that all runs together may spend, at a delta."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Sweep:
    """The sweep that a trial is of.

    Parameters
    ----------
    directory
        Of the sweep.
    selection, mean
        How the number of trials was drawn, `geometric` or `poisson`, and its expectation; None:
        there are as many as combinations.
    drawn
        The number that was drawn.
    """

    directory: str
    selection: str | None = None
    mean: float = 0.0
    drawn: int = 0


@dataclass(frozen=True)
class Entry:
    """What one run has spent or reserved, for one purpose.

    Parameters
    ----------
    run
        What tells it from all other runs, and from copies of its directory.
    directory, name, mode
        Where it is, its experiment, and how it trains.
    purpose
        What was released for: training, a trial of a sweep, or statistics.
    people
        Whose data it is.
    delta
        Of the run's own promise.
    spent
        Mechanisms, and how often each was used or is reserved.
    ended
        Whether all of that was used, and no more will be.
    budget
        The project's, as the run knows it.
    sweep
        Of which it is a trial.
    time
        When this was written, in seconds since 1970.
    """

    run: str
    directory: str
    name: str
    mode: str
    purpose: str
    people: People
    delta: float
    spent: tuple[tuple[GaussianMechanism, int], ...] = ()
    ended: bool = False
    budget: Budget | None = None
    sweep: Sweep | None = None
    time: float = field(default_factory=time.time)

    @property
    def released(self) -> Spent:
        """What was spent, to be composed with others': each run has noise of its own."""
        return [
            (replace(each, stream=f"{self.run} {each.stream}"), count)
            if isinstance(each, CorrelatedSums)
            else (each, count)
            for each, count in self.spent
        ]

    @property
    def key(self) -> tuple[str, str]:
        """What a later line of the same has the same of."""
        return self.run, self.purpose

    def to_line(self) -> bytes:
        """Return the line of the file."""
        fields = {
            "ledger": _VERSION,
            **vars(self),
            "people": vars(self.people),
            "spent": [fields_of(each) | {"count": count} for each, count in self.spent],
            "budget": None if self.budget is None else vars(self.budget),
            "sweep": None if self.sweep is None else vars(self.sweep),
        }
        return f"{json.dumps(fields)}\n".encode()

    @classmethod
    def from_line(cls, line: bytes) -> Entry:
        """Return what a line says; `ValueError`, `TypeError` or `KeyError` if it says nothing."""
        fields = json.loads(line)
        if not isinstance(fields, dict) or fields.pop("ledger", None) != _VERSION:
            raise ValueError("no entry of this version")
        budget, sweep = fields.pop("budget"), fields.pop("sweep")
        entry = cls(
            people=People(**fields.pop("people")),
            spent=tuple(_counted(each) for each in fields.pop("spent")),
            budget=None if budget is None else Budget(**budget),
            sweep=None if sweep is None else Sweep(**sweep),
            **fields,
        )
        _check(entry)
        return entry


class ProjectLedger:
    """The file.

    Parameters
    ----------
    path
        Of it; it is made by the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[Entry]:
        """Return the newest entry of each run and purpose, in the order of their first.

        What is being written, or was cut off, is left out: it is not released yet, or never was.
        Raises `LedgerError` if there is no such file, or it is no ledger.
        """
        try:
            return self._read(self.path.read_bytes())[0]
        except OSError as error:
            raise LedgerError(
                f"ledger={self.path} cannot be read: {error.strerror or error}. Name the file that "
                "runs have as privacy.ledger."
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Keep other processes out; what is put inside the block is durable when it returns.

        Raises `LedgerError` if the file cannot be written, or has no locks.
        """
        try:
            with self._locked() as file:
                data = file.read()
                entries, whole = self._read(data)
                file.truncate(whole)
                if whole and data[whole - 1 : whole] != b"\n":
                    file.write(b"\n")
                yield Transaction(entries, file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LedgerError(
                f"privacy.ledger={self.path} cannot be written: {error.strerror or error}. Nothing "
                "is released that is not charged there. Mend that, or name another file."
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                try:
                    lock(file, wait=True)
                except NoLocksError as error:
                    raise LedgerError(
                        f"privacy.ledger={self.path}: {error}, so that runs which write at the "
                        "same time could lose charges. Choose a file on another file system."
                    ) from error
                if not self._is_still(file):  # it was replaced while we waited
                    continue
                if not os.fstat(file.fileno()).st_size:  # new, or of one that has died since
                    sync_folder(self.path.parent)
                file.seek(0)
                yield file
                return

    def _is_still(self, file: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _read(self, data: bytes) -> tuple[list[Entry], int]:
        """Return the newest entries, and how many bytes are whole lines."""
        found: dict[tuple[str, str], Entry] = {}
        whole = 0
        for entry, end in whole_lines(data, _BEGINNING, Entry.from_line, self._refused):
            found[entry.key] = entry
            whole = end
        return list(found.values()), whole

    def _refused(self, number: int, _at: int, line: bytes) -> LedgerError:
        return LedgerError(
            f"{self.path}, line {number} is no entry of a privacy ledger: {line[:60]!r}. "
            "What was spent cannot be told without it. Restore the file, or name another."
        )


class Transaction:
    """The entries, as long as nobody else can change them.

    Parameters
    ----------
    entries
        The newest of each run and purpose.
    file
        To append to.
    """

    def __init__(self, entries: Sequence[Entry], file: IO[bytes]) -> None:
        self.entries = entries
        self._file = file

    def put(self, entry: Entry) -> None:
        """Let an entry take the place of the one before it."""
        self._file.write(entry.to_line())


def added(*several: Spent) -> Spent:
    """Return what was spent together, by mechanism."""
    found: Counter[GaussianMechanism] = Counter()
    for spent in several:
        for mechanism, count in spent:
            found[mechanism] += count
    return [(mechanism, count) for mechanism, count in found.items() if count]


def _can_be(sweep: Sweep) -> bool:
    drawn = sweep.selection in ("geometric", "poisson") and 1 <= sweep.mean < math.inf
    count_of(sweep.drawn)
    return isinstance(sweep.directory, str) and (sweep.selection is None or drawn)


def _counted(fields: dict[str, Any]) -> tuple[GaussianMechanism, int]:
    count = count_of(fields.pop("count"))
    return mechanism_of(fields), count


def _check(entry: Entry) -> None:
    """Raise `ValueError` or `TypeError` unless the numbers and texts of a line can be meant."""
    texts = (entry.run, entry.directory, entry.name, entry.mode, entry.purpose)
    budget, sweep = entry.budget, entry.sweep
    fits = [
        all(isinstance(text, str) for text in (*texts, *vars(entry.people).values())),
        0 <= entry.delta <= 1,
        0 <= entry.time < _LAST,
        budget is None or (budget.epsilon > 0 and 0 < budget.delta <= 1),
        isinstance(entry.ended, bool),
        sweep is None or _can_be(sweep),
    ]
    if not all(fits):
        raise ValueError("no entry that was written by a run")
