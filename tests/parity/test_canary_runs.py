"""Runs with canaries: the same however they are trained, and continued; only some take part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.job import run_job as distributed_job
from distributed.loop.epoch_batches import EpochBatches
from distributed.topology import Topology
from federated.engine.client_updates import ClientUpdates
from federated.engine.context import assemble, divide
from federated.job import run_job as federated_job
from federated.privacy.canaries import canary_clients, with_canary_clients
from federated.updates import Instruction, Stack
from heliotrope.data import load
from heliotrope.data.canaries import with_canaries
from heliotrope.runs import checkpoint
from heliotrope.tasks import example_weights, task_of
from tests.support import compose

pytestmark = pytest.mark.usefixtures("no_report")

_CLIENTS = (
    "model.hidden=[8]",
    "data.fit=none",
    "federated.clients_per_round=6",
    "federated.cpus_per_worker=1",
    "federated.checkpoint_every=1",
    "federated/privacy=central",
    "federated.privacy.noise_multiplier=3",
    "audit.canaries=12",
    "seed=3",
)
_RECORDS = (
    "model.hidden=[8]",
    "data.fit=none",
    "distributed.launcher=inline",
    "distributed.workers=1",
    "distributed.batch_size=256",
    "audit.canaries=100",
    "seed=3",
)
_PRIVATE = ("distributed/privacy=dpsgd", "distributed.privacy.noise_multiplier=3")


def trained(mode: Any, directory: Path, *settings: str) -> dict[str, torch.Tensor]:
    job = federated_job if mode == "federated" else distributed_job
    job(compose(mode, *settings), directory)
    found = checkpoint.latest(directory / "checkpoints", pytest.fail)
    assert found is not None
    return dict(found.model)


@pytest.mark.parametrize(
    "more", [(), pytest.param(("federated.privacy.sampling=fixed",), marks=pytest.mark.slow)]
)
def test_every_way_of_training_gives_the_same_model(more: tuple[str, ...], tmp_path: Path) -> None:
    ways = ("batched", "sequential")
    one, other = (
        trained(
            "federated",
            tmp_path / way,
            *_CLIENTS,
            *more,
            "federated.rounds=2",
            f"federated.client_training={way}",
        )
        for way in ways
    )
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=2e-6)
    coins = [(tmp_path / way / "canaries.json").read_text() for way in ways]
    assert coins[0] == coins[1]


def test_a_federated_run_continued_equals_one_in_one_go(tmp_path: Path) -> None:
    whole = trained("federated", tmp_path / "whole", *_CLIENTS, "federated.rounds=3")
    trained("federated", tmp_path / "parts", *_CLIENTS, "federated.rounds=1")
    parts = trained("federated", tmp_path / "parts", *_CLIENTS, "federated.rounds=3", "resume=true")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    told = json.loads((tmp_path / "parts" / "result.json").read_text())
    assert (told["canaries"]["unit"], told["canaries"]["planted"]) == ("client", 12)
    assert told["privacy"]["delta"] == pytest.approx(22**-1.1), "canaries count as clients"


@pytest.mark.parametrize("more", [pytest.param((), marks=pytest.mark.slow), _PRIVATE])
def test_a_data_parallel_run_continued_equals_one_in_one_go(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    settings = (*_RECORDS, *more)
    whole = trained("distributed", tmp_path / "whole", *settings, "distributed.epochs=3")
    trained("distributed", tmp_path / "parts", *settings, "distributed.epochs=1")
    parts = trained(
        "distributed", tmp_path / "parts", *settings, "distributed.epochs=3", "resume=true"
    )
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_two_ranks_see_together_what_one_sees() -> None:
    run = compose("distributed", "data=digits", "distributed.batch_size=64")
    dataset = with_canaries(load(run.data, 0), 150, 0)
    task = task_of(dataset, run)

    def images(topology: Topology) -> list[torch.Tensor]:
        order = EpochBatches(
            run,
            dataset.train,
            example_weights(task, dataset.train),
            task,
            topology,
            present=dataset.present,
            stream=tuple,
        )
        return [batch.fields["image"] for batch in order.begin(1, 0, 0)]

    ranks = [images(Topology(rank=rank, world_size=2)) for rank in range(2)]
    for alone, *parts in zip(images(Topology()), *ranks, strict=True):
        assert torch.equal(alone, torch.cat(parts))


def test_what_canaries_send_is_theirs_alone_and_nothing_without_their_coin() -> None:
    run = compose("federated", *_CLIENTS)
    canaries = canary_clients(run, 22)
    assert canaries is not None
    model = torch.nn.Linear(5, 3)
    updates = ClientUpdates(model, run.optimizer, run.seed, (canaries,))
    start = {name: value.detach().clone() for name, value in model.state_dict().items()}
    clients = (0, 9, *range(10, 22))
    count = len(clients)
    arrays = {n: (v + 1).expand(count, *v.shape).clone() for n, v in start.items()}
    ones = (1,) * count
    stack = Stack(clients, arrays, ones, (0.0,) * count, ones, ones, ones)
    sent = updates(stack, start, Instruction(4), rounded=False)
    went = torch.cat([(sent.arrays[n] - start[n]).flatten(1) for n in ("weight", "bias")], dim=1)
    torch.testing.assert_close(went[:2], torch.ones(2, 18, dtype=torch.float64))
    for row, coin in enumerate(canaries.canaries.included, start=2):
        along = went[row] @ torch.from_numpy(canaries.direction(row - 2, 18))
        assert float(went[row].norm()) == pytest.approx(10.0 if coin else 0.0, abs=1e-6)
        assert float(along) == pytest.approx(10.0 if coin else 0.0, abs=1e-6)
    assert 0 < sum(canaries.canaries.included) < 12


def test_exact_sums_have_room_for_all_clients() -> None:
    run = compose("federated", *_CLIENTS)
    dataset = load(run.data, run.seed)
    clients = with_canary_clients(divide(run, dataset), 12, run.seed)
    context = assemble(run, task_of(dataset), dataset.train, clients)
    assert len(context.population) == 22
    assert context.total_weight == sum(context.weights_of(range(22))) == len(dataset.train) + 12
