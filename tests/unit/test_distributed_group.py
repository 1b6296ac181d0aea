"""Joining the other ranks, some of which never come."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

from distributed.attempt import Place
from distributed.group import joined
from distributed.hung import HungRank


@pytest.mark.parametrize("rank", [0, 2])
def test_ranks_that_never_come_are_named(rank: int) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set_timeout(timedelta(seconds=60))  # the group's own counts
    with (
        pytest.raises(HungRank, match="collective_timeout=1") as hung,
        joined(Place(rank, 3), torch.device("cpu"), 1.0, store),
    ):
        pytest.fail("two of three are not there")
    assert hung.value.ranks == tuple({0, 1, 2} - {rank})
