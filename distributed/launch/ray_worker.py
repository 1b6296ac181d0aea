"""A worker on Ray, and the training data in each node's shared memory, read there in place.

The driver imports this module before torch is there, to start the workers early.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from heliotrope.cluster.environment import DriverEnvironment
from heliotrope.errors import HeliotropeError
from heliotrope.plugin_loading import exit_said, raised

from ..attempt import RunAttempt
from ..topology import Topology
from .failures import RankError

if TYPE_CHECKING:
    from heliotrope.data import Dataset

    from .node_files import Changes, NodeDirectory

__all__ = ["RayWorker", "shared"]

_log = logging.getLogger(__name__)


class RayWorker:
    """A worker process on the cluster."""

    def __init__(self, environment: DriverEnvironment) -> None:
        """Import what takes seconds while the driver still loads the data.

        DDP imports torch._dynamo when it is first used, though nothing is compiled.
        """
        environment.enter()
        import_module("torch._dynamo")
        import_module(".process", __package__)
        self._store: Any = None
        self._files: NodeDirectory | None = None  # where the run's directory is not there
        self._stop = threading.Event()
        self._stepped = False

    def meeting_point(self) -> tuple[str, int]:
        """Open the store in which the ranks meet; return its host and port."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def sees(self, path: Path) -> bool:
        """Return whether a file of the driver's is there on this node."""
        return path.exists()

    def work_apart(self, rank: int, given: Mapping[str, bytes]) -> None:
        """Work in a directory of this node that begins with `given`, not in that of the run."""
        from .node_files import NodeDirectory

        self._files = NodeDirectory(rank, given)

    def changes(self, *, last: bool) -> Changes:
        """Return what has changed in that directory since the call before; `last` removes it."""
        assert self._files is not None
        found = self._files.changes()
        if last:
            self._files.remove()
        return found

    def receive(self, changes: Changes) -> None:
        """Write what other workers have written into that directory."""
        assert self._files is not None
        self._files.write(changes)

    def train(
        self, attempt: RunAttempt, topology: Topology, dataset: Dataset, at: tuple[str, int]
    ) -> str:
        """Train as rank `topology.rank`; return the `TrainingResult` as JSON.

        `at` are host and port of the store in which the ranks meet. Raises a `HeliotropeError`,
        which is `RankError` for any other failure: the driver may not have its class.
        """
        attempt = replace(attempt, start=attempt.start.received())
        if self._files is not None:
            attempt = replace(attempt, directory=self._files.path)
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from .process import train_process

        try:
            store = self._store or TCPStore(*at, is_master=False)
            trained = train_process(attempt, topology, dataset, self._asked, store)
            return trained.to_json()
        except HeliotropeError:
            _log.exception("failed")
            raise
        except (Exception, SystemExit) as error:  # of a class that the driver may not have
            if isinstance(error, SystemExit) and exit_said(error) is None:
                raise
            _log.exception("failed")
            raise RankError(raised(error, "")) from None

    def _asked(self) -> bool:
        self._stepped = True  # it is asked after a step
        return self._stop.is_set()

    def stop(self) -> bool:
        """Ask the training, which goes on in another thread, to stop; return if it has begun."""
        self._stop.set()
        return self._stepped


def shared(dataset: Dataset) -> Dataset:
    """Return what workers get: no natural keys, no raw rows; Ray shares arrays without a copy."""
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    without_keys = {name: replace(split, keys=None) for name, split in splits.items()}
    return replace(dataset, fitting=None, **without_keys)
