"""Joining the other ranks, some of which never come."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

from distributed.attempt import WorkerFailure
from distributed.communication.hung import HungRank
from distributed.communication.process_group import joined
from distributed.launch.failures import lost_a_peer
from distributed.topology import Topology


@pytest.mark.parametrize("rank", [0, 2])
def test_ranks_that_never_come_are_named(rank: int) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set_timeout(timedelta(seconds=60))  # the group's own counts
    with (
        pytest.raises(HungRank, match="collective_timeout=1") as hung,
        joined(Topology(rank, 3), torch.device("cpu"), 1.0, store),
    ):
        pytest.fail("two of three are not there")
    assert hung.value.ranks == tuple({0, 1, 2} - {rank})


@pytest.mark.parametrize(
    "words",
    [
        "Gloo connectFullMesh failed with timed out connecting: SO_ERROR: Connection refused",
        "Connection closed by peer: trying to connect to 10.0.0.7",
    ],
)
def test_a_rank_that_has_died_is_not_one_that_hangs(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init_process_group(**_: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr("torch.distributed.init_process_group", init_process_group)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with (
        pytest.raises(ConnectionError, match="it has died, or a firewall") as error,
        joined(Topology(0, 2), torch.device("cpu"), 0.0, store),  # it has waited long enough
    ):
        pytest.fail("the other is not there")
    assert words in str(error.value)
    assert lost_a_peer(WorkerFailure(0, f"ConnectionError: {error.value}"))
