"""Room on a Ray cluster: what is asked for, in which order, and what is said while it waits."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from federated.pools.requests import check_room, requests
from heliotrope.cluster.connection import Cluster
from heliotrope.cluster.placement import Request, reserved
from heliotrope.errors import ResourceError
from tests.support import compose

_EIGHT = Cluster(node_cpus=(8,), node_gpus=(0,), can_grow=True)


class _Busy(ModuleType):
    """Stands in for Ray: a cluster with one group of workers at a time, of `room` CPUs in all."""

    def __init__(self, room: float) -> None:
        super().__init__("busy_ray")
        self.room = room
        self.asked: list[dict[str, float]] = []

    def available_resources(self) -> dict[str, float]:
        return {"CPU": self.room}

    def placement_group(self, bundles: list[dict[str, float]], strategy: str) -> Any:
        self.asked.append(bundles[0])
        needed = sum(bundle["CPU"] for bundle in bundles)
        return SimpleNamespace(wait=lambda _seconds: needed <= self.room)

    def remove_placement_group(self, group: object) -> None: ...


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> _Busy:
    ray = _Busy(room=7)
    monkeypatch.setitem(__import__("sys").modules, "busy_ray.util.placement_group", ray)
    for name in ("_FREED_SECONDS", "_PLACED_SECONDS", "_SILENT_SECONDS", "_POLL_SECONDS"):
        monkeypatch.setattr(f"heliotrope.cluster.placement.{name}", 0.0)
    return ray


@pytest.fixture(autouse=True)
def no_bound_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own OMP_NUM_THREADS=1 would be one."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def _federated(*overrides: str, workers: int = 2) -> Any:
    run = compose("federated", "federated.pool=ray", f"federated.workers={workers}", *overrides)
    return lambda free: requests(run, _EIGHT, free)


def test_a_busy_cluster_gives_what_is_free(busy: _Busy) -> None:
    with reserved(busy, _EIGHT, "federated.workers", _federated(), 1.0) as (request, _):
        assert request == Request(2, {"CPU": 3.0})
    assert busy.asked == [{"CPU": 4.0}, {"CPU": 3.0}], "all of it first: it may just be set free"


def test_the_least_is_waited_for_with_a_line_and_an_end(
    busy: _Busy, capsys: pytest.CaptureFixture[str]
) -> None:
    busy.room = 1
    with (
        pytest.raises(ResourceError, match=r"federated\.workers=2.*cluster\.wait_seconds"),
        reserved(busy, _EIGHT, "federated.workers", _federated(), 0.1),
    ):
        pass
    line = capsys.readouterr().err
    assert "waiting up to 0.1 s (cluster.wait_seconds)" in line
    assert "2 worker(s) with 1 CPU(s) each" in line
    assert "Of its 8 CPU(s) 1" in line
    assert busy.asked[-1] == {"CPU": 1.0}


def test_what_the_user_asks_for_is_asked_for_even_if_no_node_has_it(busy: _Busy) -> None:
    asked = _federated("federated.cpus_per_worker=16", "device=cuda")
    with pytest.raises(ResourceError), reserved(busy, _EIGHT, "federated.workers", asked, 0.0):
        pass
    assert busy.asked == [{"CPU": 16.0, "GPU": 1.0}]


def _first(gpus: int, free: tuple[int, int] | None, *overrides: str) -> Request:
    run = compose("federated", "federated.pool=ray", "federated.workers=2", *overrides)
    found: Iterator[Request] = requests(run, Cluster((8,), (gpus,), can_grow=True), free)
    return next(found)


def test_no_more_cpus_are_asked_for_than_there_may_be_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert _first(0, None).each == {"CPU": 2.0}


def test_gpus_that_others_hold_are_not_counted() -> None:
    assert _first(2, None).each == {"CPU": 4.0, "GPU": 1.0}
    assert _first(2, (8, 1)).each == {"CPU": 4.0, "GPU": 0.5}
    assert _first(2, (8, 0)).each == {"CPU": 4.0}
    assert _first(2, (8, 0), "device=cuda").each == {"CPU": 4.0, "GPU": 1.0}, "to wait for"
    assert _first(2, (8, 0), "federated.gpus_per_worker=0.5").each == {"CPU": 4.0, "GPU": 0.5}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["federated.workers=9"], "federated.workers=9"),
        (["federated.workers=2", "federated.cpus_per_worker=3"], "federated.cpus_per_worker=3"),
    ],
)
def test_ray_of_our_own_will_never_have_more(overrides: list[str], said: str) -> None:
    run = compose("federated", "federated.pool=ray", *overrides)
    two_nodes = Cluster(node_cpus=(4, 2), node_gpus=(0, 0))
    with pytest.raises(ResourceError, match=said):
        check_room(run, two_nodes)
    check_room(run, Cluster((4, 2), (0, 0), can_grow=True))
