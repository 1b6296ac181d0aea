"""BatchNorm's statistics in data-parallel training: all ranks evaluate, and save, the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import TCPStore

import distributed.loop.evaluation
from distributed.attempt import AttemptStart, RunAttempt, WorkerResources
from distributed.driver import build_components
from distributed.launch.process import train_process
from distributed.launch.resources import worker_resources
from distributed.loop.evaluation import evaluate_by_ranks
from distributed.strategies.buffers import check_batchnorm, synchronised
from distributed.topology import Topology
from heliotrope import registry
from heliotrope.config import Run
from heliotrope.data import load
from heliotrope.errors import ConfigError
from heliotrope.metrics import Metrics
from heliotrope.runs.clock import Clock
from heliotrope.runs.directory import RunDirectory
from tests.distributed_runs import SMALL
from tests.support import ROOT, assert_same_tensors, compose, environment, saved_by, weights

_STRATEGIES = {
    "ddp": ("distributed.ema_decay=null",),
    "ddp with averaged weights": ("distributed.ema_decay=0.9",),
    "fsdp": ("distributed.strategy=fsdp",),
    "fsdp with averaged weights": ("distributed.strategy=fsdp", "distributed.ema_decay=0.9"),
    "local_sgd": ("distributed.strategy=local_sgd", "distributed.diloco.local_steps=3"),
    "diloco": ("distributed.strategy=diloco", "distributed.diloco.local_steps=3"),
}


class _Counted(nn.Module):
    """A layer with buffers of several types, one of which is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(64), persistent=False)
        self.register_buffer("seen", torch.tensor([False, False]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)  # another tensor
            self.seen |= torch.tensor([inputs.sum() > 0, inputs.sum() <= 0])
        return inputs - self.mean


def with_batchnorm(*, hidden: list[int]) -> nn.Module:
    assert hidden
    body = nn.Sequential(nn.Flatten(), _Counted(), nn.BatchNorm1d(64), nn.ReLU())
    return nn.Sequential(body, nn.Linear(64, 10))


def _run(strategy: str) -> Run:
    size = ("distributed.workers=2", "distributed.epochs=2", "distributed.launcher=torchrun")
    keys = (word for word in SMALL if word != "model.dropout=0.2")
    return compose("distributed", "model=with_batchnorm", *keys, *size, *_STRATEGIES[strategy])


def be_rank(rank: int, port: int, folder: Path) -> None:
    """Train with every strategy as one of two ranks; save the buffers that are evaluated."""
    registry.register("model", "with_batchnorm", with_batchnorm, "this file")
    evaluated: dict[str, torch.Tensor] = {}

    def watched(model: nn.Module, *how: Any) -> Metrics:
        evaluated.clear()
        evaluated.update({name: b.clone() for name, b in model.named_buffers()})
        return evaluate_by_ranks(model, *how)

    distributed.loop.evaluation.evaluate_by_ranks = watched
    dataset = load(_run("ddp").data, 0)
    for number, strategy in enumerate(_STRATEGIES):
        store = TCPStore("127.0.0.1", port + number, is_master=rank == 0, wait_for_workers=False)
        home, start = folder / strategy, AttemptStart(Clock().read(), 0.0, strategy)
        attempt = RunAttempt(_run(strategy), home, None, start, WorkerResources(1, "cpu"))
        train_process(attempt, Topology(rank, 2, rank), dataset, lambda: False, store)
        torch.save(evaluated, folder / f"{strategy} {rank}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    for strategy in _STRATEGIES:
        RunDirectory(folder / strategy).path.mkdir()
    free = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port
    code = "import sys, pathlib; from tests.parity.test_buffers import be_rank; "
    code += f"be_rank(int(sys.argv[1]), {free + 1}, pathlib.Path(sys.argv[2]))"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(folder)], env=environment(), cwd=ROOT
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(100) for rank in ranks] == [0, 0]
    return folder


@pytest.mark.parametrize("strategy", _STRATEGIES)
def test_all_ranks_evaluate_and_save_the_same_buffers(strategy: str, trained: Path) -> None:
    mine, other = (torch.load(trained / f"{strategy} {rank}") for rank in (0, 1))
    assert mine.keys() == other.keys()
    for name, buffer in mine.items():
        assert torch.equal(buffer, other[name]), name
    assert mine["0.2.num_batches_tracked"] == 22
    assert 0 < mine["0.2.running_mean"].abs().sum() < torch.inf
    saved = saved_by(trained / strategy)
    for name in mine.keys() & saved.model.keys():
        assert torch.equal(saved.model[name], mine[name]), name
    assert "0.1.seen" in saved.model


_SYNC = "distributed.sync_batchnorm=true"


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("device=cpu", "Set distributed.sync_batchnorm=false, .*device=cuda"),
        ("distributed.strategy=diloco", "Set it to false, or distributed.strategy=ddp"),
        ("distributed.strategy=local_sgd", "Set it to false, or distributed.strategy=ddp"),
    ],
)
def test_batches_over_all_ranks_are_refused_where_there_is_no_such_thing(
    given: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=rf"distributed\.sync_batchnorm=true.*{remedy}"):
        compose("distributed", _SYNC, given)


def test_workers_that_turn_out_to_be_on_cpus_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"distributed\.sync_batchnorm=true needs workers on GPUs"
    ):
        worker_resources(compose("distributed", _SYNC), 2, cpus=2, largest=1, gpus=0)


def test_a_model_without_batchnorm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sync_batchnorm=true has no effect: model=mlp"):
        build_components(compose("distributed", _SYNC))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_statistics_beside_sharded_half_weights_are_refused_on_cpus(precision: str) -> None:
    keys = ("distributed.strategy=fsdp", f"distributed.precision={precision}", "device=cpu")
    run = compose("distributed", *keys, "distributed.workers=2")
    with pytest.raises(ConfigError, match=f"precision={precision} .*BatchNorm.*strategy=ddp"):
        check_batchnorm(run, with_batchnorm(hidden=[16]))
    check_batchnorm(run, nn.Linear(2, 2))


def test_synchronised_layers_keep_their_names_and_values() -> None:
    model = with_batchnorm(hidden=[16])
    before = weights(model)
    after = synchronised(model)
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in after.modules())
    assert_same_tensors(before, weights(after))
