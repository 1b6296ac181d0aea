"""What a run has spent: a line for each noisy sum, or block of them, durable before the first."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliotrope.errors import LedgerError, RunFailedError, writing
from heliotrope.privacy.accountant import Spent
from heliotrope.privacy.charges import ProjectCharges
from heliotrope.privacy.lines import count_of, whole_lines
from heliotrope.privacy.mechanisms import GaussianMechanism, fields_of, mechanism_of
from heliotrope.privacy.project import STATISTICS, TRAINING, added
from heliotrope.system.durable import sync_folder

__all__ = ["PLANNED", "Ledger", "Release", "release_stamp", "salted"]

# Of a line: release, mechanism, count, clients and purpose.
_Charge = tuple[str, GaussianMechanism, int, list[str], str]
_BEGINNING = b'{"release": '  # of every line

PLANNED = "planned"  # the release of a line that charges nothing, but notes the noise of a run


@dataclass(frozen=True)
class Release:
    """Statistics that a run releases once, before training.

    Parameters
    ----------
    name
        Another one if its noise is drawn afresh.
    mechanism
        By which they are released.
    """

    name: str
    mechanism: GaussianMechanism


class Ledger:
    """The releases of a run, in a file that is only ever appended to.

    A release that is the same again, noise included, tells nothing new: it has the same name and is
    charged once. Noise drawn afresh gives it another name. A line may charge several releases of
    one mechanism, or none, to note which is planned. It charges the run, or clients by name, each
    of whom has an account of its own where they differ in what they take part in. What is released
    beside training has a purpose of its own.

    Parameters
    ----------
    path
        Of the file, one JSON object a line; see `heliotrope.privacy.lines` for the last one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._project: ProjectCharges | None = None
        self._charges: dict[
            str | None, dict[str, tuple[GaussianMechanism, int]]
        ] = {}  # None: of the run
        self._purposes: dict[str, str] = {}  # of releases that are not for training
        self._totals: Counter[tuple[str, GaussianMechanism]] = Counter()  # of the run
        self._saved: dict[str, dict[str, Any]] = {}
        self._disk = ThreadPoolExecutor(1)
        self._synced: Future[None] | None = None
        data, whole = path.read_bytes() if path.exists() else b"", 0
        for charge, end in whole_lines(data, _BEGINNING, _read, self._refused):
            self._note(*charge)
            whole = end
        with writing(path):
            self._file = path.open("ab")
            self._file.truncate(whole)
            if whole and data[whole - 1 : whole] != b"\n":
                self._file.write(b"\n")
            sync_folder(path.parent)

    def _refused(self, _number: int, at: int, line: bytes) -> RunFailedError:
        return RunFailedError(
            f"{self._path}, byte {at}: {line[:200]!r} is no charge of a privacy ledger. What was "
            "spent cannot be told from it: restore the file, or begin in another directory."
        )

    def _note(
        self,
        release: str,
        mechanism: GaussianMechanism,
        count: int,
        clients: Sequence[str],
        purpose: str,
    ) -> dict[str, Any]:
        """Take up a charge, and return its line."""
        if purpose != TRAINING:
            self._purposes[release] = purpose
        for client in _accounts(clients):
            self._charges.setdefault(client, {})[release] = (mechanism, count)
        if not clients:
            self._totals[purpose, mechanism] += count
        line = {"release": release, **fields_of(mechanism)}
        line |= {} if count == 1 else {"count": count}
        line |= {} if purpose == TRAINING else {"purpose": purpose}
        line |= {"clients": list(clients)} if clients else {}
        self._saved["\n".join([release, *clients])] = line
        return line

    def charge_to(self, project: ProjectCharges) -> None:
        """Charge a project, too, from now on; closing this then says that the run has ended."""
        self._project = project

    def reserve(self, planned: Spent, releases: Sequence[Release] = ()) -> None:
        """Tell the project what the run will have spent in the end, before it begins.

        `planned` is that of training alone. Raises `LedgerError` if the project's budget has no
        room for it.
        """
        if self._project is not None:
            charged = {m: n for (purpose, m), n in self._totals.items() if purpose == TRAINING}
            training = list((Counter(dict(planned)) | Counter(charged)).items())
            self._project.reserve(training, self.statistics(releases))

    def charge_all(self, releases: Sequence[Release]) -> None:
        """Charge statistics, durably: they may be used when this returns."""
        for release in releases:
            self.charge(release.name, release.mechanism, purpose=STATISTICS)
        self.sync()

    def charge(
        self,
        release: str,
        mechanism: GaussianMechanism,
        count: int = 1,
        clients: Sequence[str] = (),
        purpose: str = TRAINING,
    ) -> None:
        """Charge `mechanism` for a release, or a block of them, unless that is charged already.

        It is charged to each of `clients`; without any, to the run. It is durable after `sync`,
        which waits for the disk.
        """
        accounts = _accounts(clients)
        new = [client for client in accounts if release not in self._charges.get(client, {})]
        if not new:
            return
        if self._project is not None:
            if clients:
                raise LedgerError(
                    "privacy.ledger counts what runs tell of all clients alike; this protection "
                    "has an account for each client. Set privacy.ledger=null."
                )
            self._project.cover(mechanism, self._totals[purpose, mechanism] + count, purpose)
        line = self._note(release, mechanism, count, [c for c in new if c is not None], purpose)
        with writing(self._path):
            self._file.write(f"{json.dumps(line)}\n".encode())
            self._file.flush()
        self._synced = self._disk.submit(os.fdatasync, self._file.fileno())

    def sync(self) -> None:
        """Return when all charges are durable: what was charged may be released."""
        if self._synced is not None:
            with writing(self._path):
                self._synced.result()

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, a line each."""
        return dict(self._saved)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Charge what a checkpoint has and the file has not, as when the file was lost."""
        for release, line in saved.items():
            self.charge(*_parsed({"release": release, **line}))
        self.sync()

    @property
    def clients(self) -> list[str]:
        """The clients that were charged, in the order of their first charges."""
        return [client for client in self._charges if client is not None]

    @property
    def latest(self) -> GaussianMechanism | None:
        """The mechanism that training was charged for last; None if it was not charged."""
        return self.latest_of(None)

    def latest_of(self, client: str | None) -> GaussianMechanism | None:
        """Return the mechanism that a client was charged for last; None if it was not charged.

        For training: statistics have noise of their own.
        """
        charges = reversed(self._charges.get(client, {}).items())
        return next((m for release, (m, _) in charges if release not in self._purposes), None)

    @property
    def spent(self) -> Spent:
        """What was charged to the run, by mechanism."""
        return self.without(())

    def without(
        self, releases: Container[str], client: str | None = None, purpose: str | None = None
    ) -> Spent:
        """Return what was charged to the run, or to a client, but for these, by mechanism.

        For one purpose; None: for all of them.
        """
        found: Counter[GaussianMechanism] = Counter()
        for release, (mechanism, count) in self._charges.get(client, {}).items():
            wanted = purpose in (None, self._purposes.get(release, TRAINING))
            if count and wanted and release not in releases:
                found[mechanism] += count
        return list(found.items())

    def salt(self, stamp: str) -> int:
        """Return 0 if all that training was charged for has `stamp` in its name, else a new number.

        What is released after other settings follows from what these have led to: it is not what
        the same settings give alone, or would give again, and must not have the noise of that.
        """
        released = {name for charges in self._charges.values() for name in charges}
        own = all(stamp in name for name in released - {PLANNED} - self._purposes.keys())
        return 0 if own else secrets.randbits(52) or 1

    def uncharged(self, releases: Sequence[Release]) -> Spent:
        """Return what those of these statistics will spend that are not charged yet."""
        charged = self._charges.get(None, {})
        return added([(each.mechanism, 1) for each in releases if each.name not in charged])

    def statistics(self, releases: Sequence[Release] = ()) -> Spent:
        """Return what was charged for statistics, and will be for those of `releases`."""
        return added(self.without((), purpose=STATISTICS), self.uncharged(releases))

    def close(self) -> None:
        """Close the file; what was reserved of the project's budget and not used is free again."""
        self._disk.shutdown()
        self._file.close()
        if self._project is not None:
            self._project.end(self.without((), purpose=TRAINING), self.statistics())


def _accounts(clients: Sequence[str]) -> Sequence[str | None]:
    return clients or (None,)


def _read(line: bytes) -> _Charge:
    return _parsed(json.loads(line))


def _parsed(line: dict[str, Any]) -> _Charge:
    """Return what a line says; raises if it says nothing."""
    fields = dict(line)
    release, count = str(fields.pop("release")), count_of(fields.pop("count", 1))
    clients, purpose = fields.pop("clients", []), fields.pop("purpose", TRAINING)
    if not isinstance(clients, list):  # a text would be its letters
        raise TypeError("no list of clients")
    if purpose not in (TRAINING, STATISTICS):
        raise ValueError("no purpose")
    return release, mechanism_of(fields), count, [str(client) for client in clients], purpose


def release_stamp(*fixed: Any) -> str:
    """Return a short name of what noise and charge of a release depend on beside a seed."""
    text = json.dumps(fixed, default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def salted(stamp: str, salt: int) -> str:
    """Return a stamp that the number makes another; as it is for 0."""
    return release_stamp(stamp, salt) if salt else stamp
