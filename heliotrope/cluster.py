"""The Ray cluster a run uses: the one that is running, or one of its own on this machine.

`ray` comes in as a module: Heliotrope's core does not import it, only the modes do, and only
when asked for.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from heliotrope.errors import ResourceError
from heliotrope.resources import available_cpus

__all__ = ["Cluster", "alive", "free", "room", "session"]

# No dashboard, and no copy of the workers' output on the terminal: they log to the run's log.
_QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}

# An autoscaler has nothing to do on one machine. Ray's second one ends when it is told to; for its
# first one `ray.shutdown` waits a second and then kills it.
_AUTOSCALER = "RAY_enable_autoscaler_v2"


@dataclass(frozen=True)
class Cluster:
    """The CPUs and GPUs of each node that is alive."""

    node_cpus: tuple[int, ...]
    node_gpus: tuple[int, ...]

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

    def cpu_share(self, workers: int, *, gpu: bool = False) -> int:
        """Return the most CPUs each of `workers` can have; 0 if they do not fit at all.

        A worker lives on one node, so two nodes of 3 CPUs hold three workers of 1, not of 2.
        With `gpu`, each also has a GPU of that node.
        """
        nodes = list(zip(self.node_cpus, self.node_gpus, strict=True))
        for share in range(self.cpus // workers, 0, -1):
            places = (min(c // share, g) if gpu else c // share for c, g in nodes)
            if sum(places) >= workers:
                return share
        return 0

    def gpu_share(self, key: str, workers: int, wanted: float | None) -> float:
        """Return the GPUs that each of `workers` has: `wanted`, or an equal share, 1 at most.

        A share below 1 is of one GPU: two GPUs hold three workers of 1/2, not of 2/3. Raises
        `ResourceError` naming `key` if they do not fit.
        """
        if wanted is None:
            return 1 / -(-workers // self.gpus) if self.gpus else 0.0
        if wanted > 1 and wanted != int(wanted):
            raise ResourceError(f"{key}={wanted:g} must be a whole number or less than 1.")
        places = sum(self._places(gpus, wanted) for gpus in self.node_gpus) if wanted else workers
        if places < workers:
            raise ResourceError(
                f"{key}={wanted:g} leaves room for {places} worker(s) on {self.gpus} GPU(s), not "
                f"for {workers}. Lower it, or set it to 0 to train on CPUs."
            )
        return wanted

    @staticmethod
    def _places(gpus: int, wanted: float) -> int:
        """Return how many shares of `wanted` a node of `gpus` has."""
        return gpus // int(wanted) if wanted >= 1 else gpus * int(1 / wanted + 1e-9)


@contextmanager
def session(ray: ModuleType) -> Iterator[Cluster]:
    """Be connected to Ray inside the block.

    Ray that this process has initialised already is used and left as it is. Otherwise this
    process connects to the cluster that `RAY_ADDRESS` or `ray start` on this machine names,
    and disconnects after the block; without one, it starts Ray here and stops it after the
    block, also when the block is interrupted.

    Raises `ResourceError` if `RAY_ADDRESS` names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield alive(ray)
        return
    try:
        with _own_signal_handler():
            _connect(ray)
        yield alive(ray)
    finally:
        gc.collect()  # Ray ends the process if a reference to it is freed while it stops
        ray.shutdown()  # of a cluster that was running before, only our connection


@contextmanager
def room(
    ray: ModuleType,
    cluster: Cluster,
    key: str,
    workers: int,
    each: Mapping[str, float],
    patience: float = 30.0,
) -> Iterator[Any]:
    """Hold what all workers need, or nothing, inside the block; gives Ray's placement group.

    All or nothing, so that two runs cannot block each other. Raises `ResourceError` naming
    `key` if others hold too much of the cluster for `patience` seconds.
    """
    groups = importlib.import_module(f"{ray.__name__}.util.placement_group")
    bundle = {name: float(count) for name, count in each.items()}
    group = groups.placement_group([bundle] * workers, strategy="PACK")
    try:
        if not group.wait(patience):
            cpus, gpus = free(ray)
            raise ResourceError(
                f"{key}={workers} needs {dict(each)} each, but of the cluster's {cluster.cpus} "
                f"CPUs and {cluster.gpus} GPUs only {cpus} and {gpus} are "
                f"free. Wait for the other jobs, or use fewer workers."
            )
        yield group
    finally:
        groups.remove_placement_group(group)


def _connect(ray: ModuleType) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    if ":" in address and "://" not in address:
        _check_answers(address)
    try:
        with _set(_AUTOSCALER, "1"):
            ray.init(num_cpus=available_cpus(), **_QUIET)
        return
    except ValueError:  # a cluster is running: how many CPUs it has is not ours to say
        pass
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise ResourceError(f"{error}: {reason}") from error


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


def _check_answers(address: str) -> None:
    """Refuse an address where nothing listens: `ray.init` would wait for it for ever."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"RAY_ADDRESS={address} does not answer ({error}). Start that cluster, or unset "
            "RAY_ADDRESS to run on this machine alone."
        ) from error


@contextmanager
def _own_signal_handler() -> Iterator[None]:
    """Keep this process's way of dying: `ray.init` puts in a SIGTERM handler of its own."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as ended:  # Ray's handler, with a code of its own
        raise SystemExit(128 + signal.SIGTERM) from ended
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


def free(ray: ModuleType) -> tuple[int, int]:
    """Return how many CPUs and GPUs of the cluster nobody holds."""
    left = ray.available_resources()
    return int(left.get("CPU", 0)), int(left.get("GPU", 0))


def alive(ray: ModuleType) -> Cluster:
    """Return the cluster as it is now."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(
        node_cpus=tuple(int(node.get("CPU", 0)) for node in nodes),
        node_gpus=tuple(int(node.get("GPU", 0)) for node in nodes),
    )
