"""The most memory that a process has of its own while it does something."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

__all__ = ["AnonymousMemory", "import_engines"]

_EVERY = 0.001  # seconds between two looks at the memory


class AnonymousMemory:
    """The most anonymous memory of this process in each stage, in bytes above the baseline's.

    The baseline is what the process has when this is made. Files that are mapped do not count.
    """

    def __init__(self) -> None:
        self.most: dict[str, int] = {}
        self._baseline = self._now()

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Look at it all the time inside the block."""
        done = threading.Event()
        self.most[stage] = 0

        def look() -> None:
            while not done.wait(_EVERY):
                self.most[stage] = max(self.most[stage], self._now() - self._baseline)

        watch = threading.Thread(target=look)
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join()

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def import_engines() -> None:
    """Import what the engines import when they are made, so that it is there at the baseline."""
    for name in ("torch._dynamo", "heliotrope.distributed.strategies.fsdp"):
        import_module(name)
