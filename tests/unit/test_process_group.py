"""Joining the other ranks, some of which never come."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

from distributed.attempt import WorkerFailure
from distributed.communication.hung import HungRank
from distributed.communication.process_group import data_parallel, joined
from distributed.launch.failures import lost_a_peer
from distributed.topology import Topology
from heliotrope.errors import RunFailedError
from tests.support import small_task


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


def test_ranks_that_all_wait_are_told_what_may_be_the_cause() -> None:
    assert re.search(
        r"all wait, too: .* leaves layers out .*strategy=local_sgd", str(HungRank((), 5))
    )


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


class _Skips(nn.Module):
    """A model of which some passes leave a layer out: all, some of its inputs, or at random."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(6, 4), nn.Linear(6, 4)
        self.kind, self.uses = kind, False

    def forward(self, inputs: Tensor) -> Tensor:
        dropped = self.kind == "drops" and self.training and random.random() < 0.5
        used = {"never": False, "branch": bool(inputs.sum() > 0), "drops": not dropped}
        outputs: Tensor = self.always(inputs)
        return outputs + self.sometimes(inputs) if used.get(self.kind, self.uses) else outputs


@pytest.fixture
def group() -> Iterator[Topology]:
    """Be alone in a process group, as if there were another rank."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield Topology(0, 2)
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["never", "branch", "drops"])
def test_weights_that_passes_leave_out_have_no_gradient(kind: str, group: Topology) -> None:
    model = _Skips(kind)
    wrapped = data_parallel(model, small_task(classes=4, shape=(6,)), group, uses_all=False)
    used = 0
    for step in range(6):
        wrapped.zero_grad(set_to_none=True)
        wrapped((-1.0) ** step * torch.ones(2, 6)).sum().backward()
        assert model.always.weight.grad is not None
        used += model.sometimes.weight.grad is not None
    assert used == {"never": 0, "branch": 3}.get(kind, used)


def test_weights_that_are_left_out_later_are_a_failure_with_a_remedy(
    group: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _Skips("later")
    model.uses = True
    wrapped = data_parallel(model, small_task(classes=4, shape=(6,)), group, uses_all=False)
    model.uses = False
    monkeypatch.setattr("torch.distributed.init_process_group", lambda **_: None)

    def take_two_steps() -> None:
        with joined(group, torch.device("cpu"), 60.0, HashStore()):
            for _ in range(2):
                wrapped(torch.ones(2, 6)).sum().backward()

    with pytest.raises(RunFailedError, match=r"Add 0 times .*strategy=local_sgd"):
        take_two_steps()
