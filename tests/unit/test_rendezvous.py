"""Ranks that torchrun started find each other, though the dead have left their words behind."""

from __future__ import annotations

from concurrent.futures import Future
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from distributed.communication.hung import HungRank
from distributed.launch.rendezvous import Rendezvous
from distributed.topology import Topology
from heliotrope.system.background import in_background


@pytest.fixture
def store() -> TCPStore:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set_timeout(timedelta(seconds=20))
    return store


def _client(store: TCPStore) -> TCPStore:
    return TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)


def _meeting(store: TCPStore, rank: int, world: int, timeout: float = 20.0) -> Rendezvous:
    return Rendezvous(_client(store), Topology(rank, world), timeout, pytest.fail)


def _met(store: TCPStore, world: int, attempt: int) -> list[Rendezvous]:
    """Let all ranks of an attempt meet, and rank 0 tell the others its number."""
    meetings = [_meeting(store, rank, world) for rank in range(world)]
    met = [in_background(lambda m=m: m.meet({"attempt": attempt})) for m in meetings]
    assert [each.result(20) for each in met] == [[{"attempt": attempt}] * world] * world
    heard = [in_background(meeting.announced) for meeting in meetings[1:]]
    meetings[0].announce({"attempt": attempt})
    assert [each.result(20) for each in heard] == [{"attempt": attempt}] * (world - 1)
    return meetings


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_attempt_has_words_of_its_own(world: int, store: TCPStore) -> None:
    for attempt in range(3):
        for rank, meeting in enumerate(_met(store, world, attempt)):
            assert not meeting.store.check([f"address/{rank}"])
            meeting.store.set(f"address/{rank}", "x")


def test_a_process_that_dies_before_they_have_met_is_replaced(store: TCPStore) -> None:
    _met(store, 3, attempt=0)
    dead = _meeting(store, 1, 3, timeout=0.3)  # of three, it and rank 0 are there
    first: Future[object] = in_background(lambda: _meeting(store, 0, 3).meet({"attempt": 1}))
    with pytest.raises(HungRank):
        dead.meet({"attempt": 0})
    others = [_meeting(store, rank, 3) for rank in (1, 2)]
    met = [in_background(lambda m=m: m.meet({"attempt": 1})) for m in others]
    assert [each.result(20) for each in (first, *met)] == [[{"attempt": 1}] * 3] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_who_does_not_come_is_named(rank: int, store: TCPStore) -> None:
    _met(store, 2, attempt=0)
    with pytest.raises(HungRank, match=f"missing: rank {1 - rank}. .*collective_timeout=0.5"):
        _meeting(store, rank, 2, timeout=0.5).meet({})
