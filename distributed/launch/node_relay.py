"""The driver's end of directories that workers have on other nodes: see `node_files`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from heliotrope.errors import RunFailedError

from .node_files import Changes, is_part, write_changes

__all__ = ["Relay"]

_EVERY = 0.5  # seconds between two questions to the workers
_PATIENCE = 60.0  # seconds, for an answer: files of a large checkpoint take a while


class Relay:
    """Writes into `root`, inside the block, what `workers` write in directories of their own.

    `workers` are actors, by rank; of a worker that has died nothing more comes.
    """

    def __init__(self, workers: Mapping[int, Any], root: Path) -> None:
        self._workers, self._root = workers, root
        self._over = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="relay")

    def __enter__(self) -> Relay:
        if self._workers:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        if self._workers:
            self._thread.join()
        if kind is None:
            self.raise_if_failed()

    def raise_if_failed(self) -> None:
        """Raise `RunFailedError` if `root` did not take what came."""
        if self._error is not None:
            raise RunFailedError(
                f"Files that workers sent could not be written under {self._root}: {self._error}. "
                "Make room there, and continue from the last checkpoint with resume=true."
            ) from self._error

    def _run(self) -> None:
        while self._error is None:
            last = self._over.wait(_EVERY)
            try:
                for rank in sorted(self._workers, reverse=True):  # number 0 awaits the others
                    write_changes(self._root, self._changes(rank, last=last))
            except OSError as error:
                self._error = error
            if last:
                return

    def _changes(self, rank: int, *, last: bool) -> Changes:
        """Return what a worker has written, but for parts that number 0 puts together elsewhere."""
        try:
            changes: Changes = self._ask(rank, "changes", last=last)
            parts = {name: content for name, content in changes.whole.items() if is_part(name)}
            if not parts or 0 not in self._workers:
                return changes
            self._ask(0, "receive", Changes(whole=parts))
        except RayError:  # whoever waits for the training sees why
            return Changes()
        rest = {name: content for name, content in changes.whole.items() if name not in parts}
        return replace(changes, whole=rest)

    def _ask(self, rank: int, method: str, *arguments: Any, **keywords: Any) -> Any:
        answer = getattr(self._workers[rank], method).remote(*arguments, **keywords)
        return ray.get(answer, timeout=_PATIENCE)
