"""The journal of a search: what was tried and what came of it, a JSON object a line.

    {"event": "search", ...}              what it goes over, and how: the first line
    {"event": "ask", "trial": 0, ...}     the values of a trial, before it begins
    {"event": "tell", "trial": 0, ...}    how it ended

Each line is on the disk before what it says has any effect, so that a search which is killed goes
on from it: no trial is proposed twice, and none that has ended runs again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from heliotrope.errors import RunDirectoryError, writing
from heliotrope.privacy.lines import count_of, whole_lines
from heliotrope.runs.pruning import PruningRule
from heliotrope.search.trials import Ended, Trial
from heliotrope.system.durable import sync_folder
from heliotrope.system.locks import NoLocksError, lock

__all__ = ["JOURNAL", "Journal"]

JOURNAL = "search.jsonl"
"""The name of the file, in the directory of the search."""

_BEGINNING = b'{"event": "'


class Journal:
    """The journal in the directory of a search, which one process has at a time.

    `settings` are those of its first line, None of one that is new; `trials` are all so far, by
    number. Raises `RunDirectoryError` if another process has it, or if it is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / JOURNAL
        self.settings: dict[str, Any] | None = None
        self.trials: list[Trial] = []
        with writing(self.path, "hydra.sweep.dir"):
            directory.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("a+b")
            sync_folder(directory)
        try:
            self._lock()
            self._file.seek(0)
            data, whole = self._file.read(), 0
            for event, end in whole_lines(data, _BEGINNING, json.loads, self._refused):
                self._take(event, data[whole:end])
                whole = end
            self._file.truncate(whole)
            if whole and not data[:whole].endswith(b"\n"):
                self._file.write(b"\n")
        except BaseException:
            self._file.close()
            raise

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write what the search goes over, as its first line."""
        self._write({"event": "search", **settings})
        self.settings = dict(settings)

    def ask(self, trial: Trial) -> None:
        """Write the values of the next trial."""
        rule = None if trial.rule is None else trial.rule.to_json()
        event = {"trial": trial.number, "values": dict(trial.values), "rule": rule}
        self._write({"event": "ask", **event})
        self.trials.append(trial)

    def tell(self, number: int, ended: Ended) -> None:
        """Write how a trial ended."""
        self._write({"event": "tell", "trial": number, **ended.to_json()})
        self.trials[number] = replace(self.trials[number], ended=ended)

    def close(self) -> None:
        """Give the search up to other processes."""
        with suppress(OSError):  # a disk that is full: what could not be written has been told of
            self._file.close()

    def remove(self) -> None:
        """Take the journal of a search away that came to nothing."""
        self.path.unlink()

    def _write(self, event: Mapping[str, Any]) -> None:
        with writing(self.path, "hydra.sweep.dir"):
            self._file.write(json.dumps(event, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def _lock(self) -> None:
        try:
            held = not lock(self._file)
        except NoLocksError:  # then the directories of its trials tell
            return
        if held:
            raise RunDirectoryError(
                f"hydra.sweep.dir={self.path.parent} is in use by another search. Wait for it, "
                "stop it, or choose another directory."
            )

    def _take(self, event: Any, line: bytes) -> None:
        """Take in what a line says."""
        try:
            kind = event.pop("event")
            if kind == "search" and self.settings is None and not self.trials:
                self.settings = dict(event)
                return
            number = count_of(event.pop("trial"))
            if kind == "ask" and number == len(self.trials) and self.settings is not None:
                rule = event["rule"] and PruningRule.from_json(event["rule"])
                self.trials.append(Trial(number, dict(event["values"]), rule))
            elif kind == "tell" and self.trials[number].ended is None:
                ended = Ended.from_json(event)
                self.trials[number] = replace(self.trials[number], ended=ended)
            else:
                raise ValueError(kind)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise self._refused(0, 0, line) from error

    def _refused(self, _number: int, _at: int, line: bytes) -> RunDirectoryError:
        return RunDirectoryError(
            f"{self.path} holds what no search has written: {line[:60]!r}. Restore the file, or "
            "choose another hydra.sweep.dir."
        )
