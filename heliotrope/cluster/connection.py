"""The Ray cluster a run uses: the one that is running, or one of its own on this machine.

`ray` comes in as a module: Heliotrope's core does not import it, only the modes do, and only
when asked for.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from heliotrope.cluster.address import accepted_by, running_cluster
from heliotrope.cluster.own_ray import (
    LOOPBACK,
    keep_token_private,
    listening_here_only,
    seen_at_once,
    without_dashboard,
)
from heliotrope.errors import ResourceError
from heliotrope.system.process_exit import stoppable
from heliotrope.system.processes import children, end, killed_once_told
from heliotrope.system.resources import available_cpus
from heliotrope.system.signals import code_of, held_back

__all__ = ["Cluster", "alive", "free", "session"]

# No dashboard, and no copy of the workers' output on the terminal: they log to the run's log.
_QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}

# An autoscaler has nothing to do on one machine. Ray's second one ends when it is told to; for its
# first one `ray.shutdown` waits a second and then kills it.
_AUTOSCALER = "RAY_enable_autoscaler_v2"

_LISTEN_SECONDS = 0.2  # that a call of Ray's may last: no signal is heard in it


@dataclass(frozen=True)
class Cluster:
    """The CPUs and GPUs of each node that is alive; `can_grow` if others may join."""

    node_cpus: tuple[int, ...]
    node_gpus: tuple[int, ...]
    can_grow: bool = False

    @property
    def cpus(self) -> int:
        """CPUs of all nodes together."""
        return sum(self.node_cpus)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes together."""
        return sum(self.node_gpus)

    @property
    def gpu_workers(self) -> int:
        """Workers that can have a GPU and a CPU of the same node each."""
        return sum(map(min, self.node_cpus, self.node_gpus))

    def cpus_per_worker(self, workers: int, *, gpu: bool = False) -> int:
        """Return the most CPUs each of `workers` can have; 0 if they do not fit at all.

        A worker lives on one node, so two nodes of 3 CPUs hold three workers of 1, not of 2.
        With `gpu`, each also has a GPU of that node.
        """
        nodes = list(zip(self.node_cpus, self.node_gpus, strict=True))
        for cpus in range(self.cpus // workers, 0, -1):
            held = (min(c // cpus, g) if gpu else c // cpus for c, g in nodes)
            if sum(held) >= workers:
                return cpus
        return 0

    def gpus_per_worker(
        self, key: str, workers: int, wanted: float | None, free: int | None = None
    ) -> float:
        """Return the GPUs that each of `workers` has: `wanted`, or an equal share, 1 at most.

        `free` are those to divide, None for all. A share below 1 is of one GPU: two GPUs hold
        three workers of 1/2, not of 2/3. Raises `ResourceError` naming `key` if `wanted` does
        not fit and never will.
        """
        if wanted is None:
            gpus = self.gpus if free is None else min(self.gpus, free)
            return 1 / -(-workers // gpus) if gpus else 0.0
        if wanted > 1 and wanted != int(wanted):
            raise ResourceError(f"{key}={wanted:g} must be a whole number or less than 1.")
        room = sum(self._room_on(gpus, wanted) for gpus in self.node_gpus) if wanted else workers
        if room < workers and not self.can_grow:
            raise ResourceError(
                f"{key}={wanted:g} leaves room for {room} worker(s) on {self.gpus} GPU(s), not "
                f"for {workers}. Lower it, or set it to 0 to train on CPUs."
            )
        return wanted

    @staticmethod
    def _room_on(gpus: int, wanted: float) -> int:
        """Return how many workers of `wanted` GPUs each a node of `gpus` has room for."""
        return gpus // int(wanted) if wanted >= 1 else gpus * int(1 / wanted + 1e-9)


@contextmanager
def session(ray: ModuleType) -> Iterator[Cluster]:
    """Be connected to Ray inside the block.

    Ray that this process has initialised already is used and left as it is. Otherwise this
    process connects to the cluster that `RAY_ADDRESS` or `ray start` on this machine names,
    and disconnects after the block; without one, it starts Ray here and stops it after the
    block. When a signal ends the block, Ray is left to end with this process.

    Raises `ResourceError` if that cluster does not answer, or does not take our token.
    """
    if ray.is_initialized():
        yield alive(ray)
        return
    before = children()
    try:
        with stoppable():
            others = _connect(ray)
        yield alive(ray, can_grow=others)
    finally:
        if code_of(sys.exception()) is None:
            _disconnect(ray, before)


def _disconnect(ray: ModuleType, before: list[int]) -> None:
    """Stop the Ray of our own, or let go of the one that was running before.

    Ray asks its processes by SIGTERM to end, which they do not hear, and waits for each. They are
    those that were not there `before` Ray was.
    """
    ours = sorted(set(children()).difference(before))
    with held_back(), killed_once_told(ours):
        gc.collect()  # Ray ends the process if a reference to it is freed while it stops
        ray.shutdown()
    end(ours)


def _connect(ray: ModuleType) -> bool:
    """Connect, and return whether to a cluster that was running before."""
    address = running_cluster(ray)
    if address is None:
        keep_token_private()
        with (
            _set(_AUTOSCALER, "1"),
            listening_here_only(ray),
            without_dashboard(ray),
            seen_at_once(ray),
        ):
            ray.init(num_cpus=available_cpus(), _node_ip_address=LOOPBACK, **_QUIET)
        return False
    try:
        with accepted_by(ray, address):
            ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError) as error:  # such as: of another version of Ray
        reason = " ".join(str(error.__cause__ or error).split())
        raise ResourceError(f"The Ray cluster at {address} cannot be used: {reason}") from error
    return True


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside the block, unless the user has."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def free(ray: ModuleType) -> tuple[int, int]:
    """Return how many CPUs and GPUs of the cluster nobody holds."""
    with held_back():
        left = ray.available_resources()
    return int(left.get("CPU", 0)), int(left.get("GPU", 0))


def alive(ray: ModuleType, *, can_grow: bool = True) -> Cluster:
    """Return the cluster as it is now; `can_grow` unless this process has started it."""
    with held_back():
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(
        node_cpus=tuple(int(node.get("CPU", 0)) for node in nodes),
        node_gpus=tuple(int(node.get("GPU", 0)) for node in nodes),
        can_grow=can_grow,
    )
