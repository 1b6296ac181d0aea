"""What a run has spent: a line for each noisy sum, or block of them, durable before the first."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Container, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heliotrope.errors import RunFailedError, writing
from heliotrope.privacy.accountant import Mechanism, Spent

__all__ = ["Ledger", "release_stamp"]


class Ledger:
    """The releases of a run, in a file that is only ever appended to.

    A release that is the same again, noise included, tells nothing new: it has the same name and is
    charged once. Noise drawn afresh gives it another name. A line may charge several releases of
    one mechanism, or none, to note which is planned.

    Parameters
    ----------
    path
        Of the file, one JSON object a line. A line that a crash has cut off was never released.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._charges: dict[str, tuple[Mechanism, int]] = {}
        self._saved: dict[str, dict[str, Any]] = {}
        self._disk = ThreadPoolExecutor(1)
        self._synced: Future[None] | None = None
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            if line.endswith(b"\n"):
                self._read(line, whole)
                whole += len(line)
        with writing(path):
            self._file = path.open("ab")
            self._file.truncate(whole)

    def _read(self, line: bytes, at: int) -> None:
        try:
            charge = json.loads(line)
            release, count = str(charge.pop("release")), int(charge.pop("count", 1))
            self._note(release, Mechanism(**charge), count)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunFailedError(
                f"{self._path}, byte {at}: {line!r} is no charge of a privacy ledger. What was "
                "spent cannot be told from it: restore the file, or begin in another directory."
            ) from error

    def _note(self, release: str, mechanism: Mechanism, count: int) -> None:
        self._charges[release] = (mechanism, count)
        self._saved[release] = asdict(mechanism) | ({} if count == 1 else {"count": count})

    def charge(self, release: str, mechanism: Mechanism, count: int = 1) -> None:
        """Charge `mechanism` for a release, or a block of them, unless that is charged already.

        It is durable after `sync`, which waits for the disk.
        """
        if release in self._charges:
            return
        self._note(release, mechanism, count)
        line = json.dumps({"release": release, **self._saved[release]})
        with writing(self._path):
            self._file.write(f"{line}\n".encode())
            self._file.flush()
        self._synced = self._disk.submit(os.fdatasync, self._file.fileno())

    def sync(self) -> None:
        """Return when all charges are durable: what was charged may be released."""
        if self._synced is not None:
            with writing(self._path):
                self._synced.result()

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, by release."""
        return dict(self._saved)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Charge what a checkpoint has and the file has not, as when the file was lost."""
        for release, fields in saved.items():
            given = dict(fields)
            count = int(given.pop("count", 1))
            self.charge(release, Mechanism(**given), count)
        self.sync()

    @property
    def latest(self) -> Mechanism | None:
        """The mechanism of the last line; None if there is no line."""
        return next((mechanism for mechanism, _ in reversed(self._charges.values())), None)

    @property
    def spent(self) -> Spent:
        """What was released, by mechanism."""
        return self.without(())

    def without(self, releases: Container[str]) -> Spent:
        """Return what was released except for these, by mechanism."""
        found: Counter[Mechanism] = Counter()
        for release, (mechanism, count) in self._charges.items():
            if count and release not in releases:
                found[mechanism] += count
        return list(found.items())

    def close(self) -> None:
        """Close the file."""
        self._disk.shutdown()
        self._file.close()


def release_stamp(*fixed: Any) -> str:
    """Return a short name of what noise and charge of a release depend on beside a seed."""
    text = json.dumps(fixed, default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
