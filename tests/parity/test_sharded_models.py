"""Sharded over four processes, also as replicas of shards, odd models are what one process has."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import FileStore
from torch.distributed.tensor import DTensor

from distributed.communication.process_group import joined
from distributed.loop.evaluation import evaluate_by_ranks
from distributed.loop.example_order import rank_slice
from distributed.strategies.build import build_engine
from distributed.strategies.engine import Engine
from distributed.topology import Topology
from heliotrope import registry
from heliotrope.config import Run
from heliotrope.data import Examples
from heliotrope.evaluation import evaluate
from heliotrope.models import build
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint, Shard
from heliotrope.training.loop import TrainTotals
from tests.support import (
    ROOT,
    assert_same_tensors,
    compose,
    environment,
    everything,
    fresh_seed,
    random_split,
    small_task,
    training_batch,
)

_WORLD, _BATCH, _STEPS = 4, 5, 3
_EXAMPLES = (1, 3, 9, 37)  # of splits: ranks have none, or another number of passes than others
_MESH = "distributed.mesh={replicate: 2, shard: 2}"
_PARTS = "distributed.sharded_checkpoints=true"
_FSDP = ("distributed.strategy=fsdp",)
_CASES: dict[str, tuple[str, ...]] = {
    "ddp": (),
    "fsdp": _FSDP,
    "replicas of shards": (*_FSDP, _MESH, _PARTS),
    "averaged": (*_FSDP, _MESH, _PARTS, "distributed.ema_decay=0.5"),
    # torch has no BatchNorm whose weights are in half precision.
    "bf16": (*_FSDP, "distributed.precision=bf16", "model.normalised=false"),
}


class _Odd(nn.Module):
    """Tied and frozen weights, buffers, and shapes that four ranks cannot divide."""

    def __init__(self, *, normalised: bool = True) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 7)
        self.enter.weight.requires_grad_(requires_grad=False)
        self.blocks = nn.ModuleList([nn.Linear(7, 7) for _ in range(4)])
        self.blocks[3].weight = self.blocks[0].weight
        self.norm = nn.BatchNorm1d(7) if normalised else nn.Identity()
        self.leave = nn.Linear(7, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        outputs: Tensor = self.leave(self.norm(hidden))
        return outputs


def _run(case: str) -> Run:
    optimizer = ("optimizer=adam", "optimizer.lr=0.01", "optimizer.clip_norm=0.5")
    size = (f"distributed.workers={_WORLD}", "distributed.launcher=torchrun")
    return compose("distributed", "model=odd", *optimizer, *size, *_CASES[case])


def _split(seed: int) -> Examples:
    return random_split(max(_EXAMPLES), small_task(3, (6,)), torch.Generator().manual_seed(seed))


def _trained(engine: Engine, split: Examples, topology: Topology) -> list[tuple[int, int]]:
    """Take steps on all examples, the last rank on fewer; return the bytes that were sent."""
    engine.begin(TrainTotals())
    sent = []
    for step in range(_STEPS):
        mine = everything(split.subset(rank_slice(len(split), topology)))
        batch = training_batch(mine["image"], mine["label"], len(split) / topology.world_size)
        engine.step(replace(batch, seed=step))
        sent.append(engine.after_step(step + 1, _STEPS))
    engine.finish()
    return sent


def _most_whole(model: nn.Module) -> list[int]:
    """Return a list to which each pass through a layer adds how many weights are whole then."""
    found: list[int] = []

    def note(*_: object) -> None:
        found.append(sum(p.numel() for p in model.parameters() if not isinstance(p, DTensor)))

    for layer in model.modules():
        layer.register_forward_pre_hook(note)  # after that which gathers its weights
    return found


def _saved(engine: Engine, rank: int, root: Path, *, parts: bool) -> Path:
    """Save what the ranks have, each its part or rank 0 all; return the checkpoint."""
    mine = engine.snapshot()
    present = Checkpoint(1, mine.model, mine.arrays, mine.rest)
    part = Shard(rank, _WORLD, "one", 60.0) if parts else None
    if rank == 0:
        checkpoint.save(root, present, part=part)
    elif part is not None:
        checkpoint.save_shard(root, present, part)
    dist.barrier()
    return checkpoint.path_of(root, 1)


def be_rank(rank: int, folder: Path, seed: int) -> None:
    """Be one of four ranks; save what came of each case."""
    topology, device, split = Topology(rank, _WORLD, rank), torch.device("cpu"), _split(seed)
    torch.set_num_threads(1)
    registry.register("model", "odd", _Odd, "this file")
    task, store = small_task(3, (6,)), FileStore(str(folder / "store"), _WORLD)
    with joined(topology, device, 100, store):
        for case in _CASES:
            run = _run(case)
            model = build(run.model, task, seed)
            frozen = model.state_dict()["enter.weight"].clone()
            engine = build_engine(run, model, task, topology, folder)
            parts, root = run.distributed.sharded_checkpoints, folder / f"{case} saved"
            sent = _trained(engine, split, topology)
            measured = {}
            with engine.evaluating() as model:
                whole = _most_whole(model)
                for count in _EXAMPLES:
                    part = split.subset(slice(0, count))
                    how = (_BATCH, topology, device, engine.passes_exchange)
                    measured[count] = evaluate_by_ranks(model, task, part, *how).to_vector()
            path = _saved(engine, rank, root, parts=parts)
            resumed = build_engine(run, build(run.model, task, seed + 1), task, topology, folder)
            resumed.restore(checkpoint.load(path, mapped=True), path)
            for name, each in {"went on": engine, "resumed": resumed}.items():
                _trained(each, split, topology)
                _saved(each, rank, root / name, parts=parts)
            found = {"sent": sent, "measured": measured, "whole": max(whole), "frozen": frozen}
            torch.save(found, folder / f"{case} {rank}")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    folder, seed = tmp_path_factory.mktemp("ranks"), fresh_seed()
    code = "import sys, pathlib; from tests.parity.test_sharded_models import be_rank; "
    code += f"be_rank(int(sys.argv[1]), pathlib.Path(sys.argv[2]), {seed})"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(folder)], env=environment(), cwd=ROOT
        )
        for rank in range(_WORLD)
    ]
    assert [rank.wait(200) for rank in started] == [0] * _WORLD
    return seed, folder


def _found(ranks: tuple[int, Path], case: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(ranks[1] / f"{case} {rank}", weights_only=False)
    return found


def _state(ranks: tuple[int, Path], case: str, name: str = "") -> Checkpoint:
    return checkpoint.load(checkpoint.path_of(ranks[1] / f"{case} saved" / name, 1))


@pytest.mark.parametrize("case", ["fsdp", "replicas of shards"])
def test_an_odd_model_trains_sharded_as_whole(case: str, ranks: tuple[int, Path]) -> None:
    print(f"random seed: {ranks[0]}")
    whole, sharded = (_state(ranks, each).model for each in ("ddp", case))
    assert list(whole) == list(sharded)
    for name, value in whole.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert torch.equal(sharded["enter.weight"], _found(ranks, case)["frozen"])
    assert torch.equal(sharded["blocks.0.weight"], sharded["blocks.3.weight"])
    assert not torch.equal(sharded["blocks.0.weight"], sharded["blocks.1.weight"])


@pytest.mark.parametrize("case", _CASES)
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(case: str, ranks: tuple[int, Path]) -> None:
    print(f"random seed: {ranks[0]}")
    went_on, resumed = (_state(ranks, case, name) for name in ("went on", "resumed"))
    assert_same_tensors(dict(went_on.model), dict(resumed.model))
    assert_same_tensors(dict(went_on.arrays), dict(resumed.arrays))
    assert went_on.state == resumed.state


@pytest.mark.parametrize("case", _CASES)
def test_all_ranks_measure_what_the_whole_model_gives(case: str, ranks: tuple[int, Path]) -> None:
    print(f"random seed: {ranks[0]}")
    task = small_task(3, (6,))
    model = _Odd(normalised=case != "bf16")
    model.load_state_dict(dict(_state(ranks, case).model))
    for count in _EXAMPLES:
        part = _split(ranks[0]).subset(slice(0, count))
        expected = torch.from_numpy(evaluate(model, task, part, _BATCH).to_vector())
        for rank in range(_WORLD):
            measured = torch.from_numpy(_found(ranks, case, rank)["measured"][count])
            torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in _CASES if case != "ddp"])
def test_no_rank_has_the_whole_model_to_evaluate(case: str, ranks: tuple[int, Path]) -> None:
    model = _Odd(normalised=case != "bf16")
    size = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.blocks[1].parameters())
    for rank in range(_WORLD):  # of blocks 1 and 2, which share no weight, one at a time
        assert _found(ranks, case, rank)["whole"] == size - block


def test_replicas_send_their_gradients_and_gather_less(ranks: tuple[int, Path]) -> None:
    once = 4 * sum(p.numel() for p in _Odd().parameters() if p.requires_grad)
    buffers = 3 * sum(b.nbytes for b in _Odd().buffers())
    assert _found(ranks, "fsdp")["sent"][0] == (3 * once, 2 * 3 * once + buffers)
    two_by_two = _found(ranks, "replicas of shards")["sent"][0]
    assert two_by_two == (3 * once, 2 * 2 * once + once + buffers)
