"""Room on a Ray cluster: asked for before it is there, and waited for.

Only a placement group that is asked for tells an autoscaler which nodes to bring. It is all or
nothing, so that two runs cannot block each other.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from heliotrope.cluster.connection import Cluster, free
from heliotrope.errors import ResourceError
from heliotrope.system.console import plain_console
from heliotrope.system.process_exit import brief
from heliotrope.system.signals import held_back

__all__ = ["Request", "halved", "reserved", "room", "say"]

_log = logging.getLogger(__name__)

_FREED_SECONDS = 5.0  # that Ray may take to give back what was held before
_PLACED_SECONDS = 1.0  # that Ray may take to place what has room
_SILENT_SECONDS = 3.0  # of waiting, before it is said
_POLL_SECONDS = 0.5  # between two looks: signals are heard in between


@dataclass(frozen=True)
class Request:
    """What all workers need: so many, and so much of `CPU` and perhaps `GPU` for each."""

    workers: int
    each: Mapping[str, float]

    def __str__(self) -> str:
        parts = " and ".join(f"{count:g} {name}(s)" for name, count in self.each.items())
        return f"{self.workers} worker(s) with {parts} each"


def say(line: str) -> None:
    """Tell the user, who may wait, and the run's log."""
    _log.info(line)
    plain_console(stderr=True).print(line)


@contextmanager
def reserved(
    ray: ModuleType,
    cluster: Cluster,
    key: str,
    requests: Callable[[tuple[int, int] | None], Iterator[Request]],
    patience: float,
) -> Iterator[tuple[Request, Any]]:
    """Hold the first of some requests that finds room; gives it and Ray's placement group.

    `requests` yields them, the largest first, for the whole cluster (None) or for as many CPUs
    and GPUs as others leave. The last is waited for, `patience` seconds at most. Raises
    `ResourceError` naming `key` if it finds no room either.
    """
    with ExitStack() as stack:
        yield _first(stack, ray, cluster, key, requests, patience)


def _first(
    stack: ExitStack,
    ray: ModuleType,
    cluster: Cluster,
    key: str,
    requests: Callable[[tuple[int, int] | None], Iterator[Request]],
    patience: float,
) -> tuple[Request, Any]:
    ideal = next(requests(None))
    *larger, last = requests(free(ray))
    if ideal != last:
        with suppress(ResourceError):
            return ideal, stack.enter_context(room(ray, cluster, key, ideal, _FREED_SECONDS))
    *larger, last = requests(free(ray))
    for request in larger:
        with suppress(ResourceError):
            return request, stack.enter_context(room(ray, cluster, key, request, _PLACED_SECONDS))
    patience = max(patience, _PLACED_SECONDS)
    return last, stack.enter_context(room(ray, cluster, key, last, patience, aloud=True))


@contextmanager
def room(
    ray: ModuleType,
    cluster: Cluster,
    key: str,
    request: Request,
    patience: float,
    *,
    aloud: bool = False,
) -> Iterator[Any]:
    """Hold what all workers need, or nothing, inside the block; gives Ray's placement group.

    Raises `ResourceError` naming `key` if there is no room for `patience` seconds; `aloud`, it
    is said what is waited for.
    """
    groups = importlib.import_module(f"{ray.__name__}.util.placement_group")
    bundle = {name: float(count) for name, count in request.each.items()}
    with held_back():
        group = groups.placement_group([bundle] * request.workers, strategy="PACK")
    try:
        began, said = time.monotonic(), not aloud
        while not _placed(group):
            waited = time.monotonic() - began
            if waited >= patience:
                raise ResourceError(
                    f"{key}={request.workers}: the Ray cluster had no room for {request} in "
                    f"{waited:.0f} s. {_state(ray, cluster)} Wait for the other jobs, set {key} "
                    "lower, or cluster.wait_seconds higher."
                )
            if not said and waited >= _SILENT_SECONDS:
                said = True
                say(
                    f"waiting up to {patience:g} s (cluster.wait_seconds) for room on the Ray "
                    f"cluster for {request}. {_state(ray, cluster)}"
                )
        yield group
    finally:
        with brief():
            groups.remove_placement_group(group)


def _placed(group: Any) -> bool:
    """Return whether a placement group has its room, or gets it within a moment."""
    with held_back():
        return bool(group.wait(_POLL_SECONDS))


def _state(ray: ModuleType, cluster: Cluster) -> str:
    cpus, gpus = free(ray)
    return f"Of its {cluster.cpus} CPU(s) {cpus} and of its {cluster.gpus} GPU(s) {gpus} are free."


def halved(cpus: int) -> list[int]:
    """Return `cpus`, its half, and so on down to 1: on which nodes room is, is not known."""
    return [cpus >> power for power in range(cpus.bit_length())]
