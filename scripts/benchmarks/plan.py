"""What `heliotrope plan` foretells of data-parallel runs beside what their ranks then take.

    python scripts/benchmarks/plan.py --workers 1,2,4 --output plan.json

For each strategy and number of workers, processes on this machine meet by gloo and take the
engine's steps on a model of some million weights, with an exchange in 8 of them where workers train
by themselves. Memory is the first rank's most anonymous memory in a step, above what it had when
its libraries and its data were there and it had met the others; bytes are what the engine counts; a
step's time is the median of some, where there are as many CPUs as workers. What is foretold comes
from one process alone and from two timed exchanges between all, a short one and a long one, by the
operations of the strategy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import record
import torch
import torch.distributed as dist
from anonymous_memory import AnonymousMemory, import_engines
from heliotrope.distributed.communication.process_group import joined
from heliotrope.distributed.planning.launch import Launch, Units
from heliotrope.distributed.planning.measurement import measured
from heliotrope.distributed.strategies.build import build_engine, build_model
from heliotrope.distributed.topology import Topology, topology_from_environment
from rich.table import Table
from running import wait_until_idle
from torch import Tensor

from heliotrope.commands.find import composed
from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.models import build
from heliotrope.planning.network import Network
from heliotrope.system.allocator import huge_pages, keep_freed_memory, return_large_blocks
from heliotrope.system.resources import available_cpus
from heliotrope.tasks import example_weights, task_of
from heliotrope.training.loop import TrainingBatch, TrainTotals

_STRATEGIES = ("ddp", "fsdp", "local_sgd", "diloco")
_KEYS = ("data=digits", "model=mlp", "optimizer=adam", "device=cpu")
_LONG = 4 << 20  # values of the long message
_ROUND = 8  # steps between two exchanges of local_sgd and diloco, which are timed together
_ROUNDS = 3
_MESSAGES = 12  # of each length that are timed


def main() -> int:
    """Measure, print how far off the plan is, and store it."""
    parser = record.parser(__doc__)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--strategies", type=record.names(_STRATEGIES), default=list(_STRATEGIES))
    parser.add_argument("--hidden", type=int, default=1500, help="width of the three layers")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--member", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        _member(_run_of(options, options.member))
        return 0
    console, said = record.console(), record.begin()
    table = Table("strategy", "workers", "memory", "foretold", "off", "step", "foretold", "off")
    rows = []
    for workers in map(int, options.workers.split(",")):
        for strategy in options.strategies:
            if strategy == "fsdp" and workers == 1:
                continue
            wait_until_idle(options.patience)
            row = _beside(options, strategy, workers)
            rows.append(row)
            shown = _shown(row)
            console.print("  ".join(shown), style="dim")
            table.add_row(*shown)
    console.print(table)
    said |= {"hidden": options.hidden, "batch_size": options.batch_size, "rows": rows}
    record.finish(said, options.output)
    return 0


def _run_of(options: argparse.Namespace, strategy: str) -> Run:
    hidden = f"model.hidden={[options.hidden] * 3}"
    keys = (*_KEYS, hidden, f"distributed.batch_size={options.batch_size}")
    local = strategy in ("local_sgd", "diloco")
    more = (f"distributed.diloco.local_steps={_ROUND}",) if local else ()
    return composed((*keys, f"distributed.strategy={strategy}", *more), "distributed")


def _beside(options: argparse.Namespace, strategy: str, workers: int) -> dict[str, Any]:
    """Return what was measured of some processes, and what was foretold of them."""
    run = _run_of(options, strategy)
    done = _members(options, strategy, workers)
    dataset = load(run.data, run.seed)
    task = task_of(dataset, run)
    size = -(-run.distributed.batch_size // workers)
    found = measured(run, dataset, task, size, 1)
    units = Units.of(build(run.model, task, run.seed))
    launch = Launch(run.distributed, workers, len(dataset.train), found, units)
    network = Network(done["bandwidth"], done["latency"])
    timed, steps = workers <= available_cpus(), _ROUND
    exchanges = 1 if strategy in ("local_sgd", "diloco") else steps
    exchange = launch.exchange_seconds(network) * exchanges / steps
    return {
        "strategy": strategy,
        "workers": workers,
        "memory": [done["memory"], launch.memory.total],
        "bytes": [done["bytes"], sum(launch.exchange_bytes)],
        "step": [done["step"], launch.compute_seconds + exchange] if timed else None,
        "network": [network.bandwidth, network.latency],
        "parts": vars(launch.memory),
    }


def _shown(row: dict[str, Any]) -> list[str]:
    def off(pair: list[float], scale: float, unit: str) -> list[str]:
        true, told = pair
        return [
            f"{true / scale:.2f} {unit}",
            f"{told / scale:.2f} {unit}",
            f"{told / true - 1:+.1%}",
        ]

    assert row["bytes"][0] == row["bytes"][1], row
    step = ["", "", ""] if row["step"] is None else off(row["step"], 1e-3, "ms")
    return [row["strategy"], str(row["workers"]), *off(row["memory"], 1e6, "MB"), *step]


def _members(options: argparse.Namespace, strategy: str, workers: int) -> dict[str, Any]:
    keys = [f"--hidden={options.hidden}", f"--batch-size={options.batch_size}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={workers}", __file__, f"--member={strategy}", *keys]
    # As the engine's own launchers start them.
    pages = huge_pages(os.environ) if strategy == "fsdp" else {}
    env = os.environ | pages
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    said: dict[str, Any] = json.loads(lines[-1])
    return said


def _member(run: Run) -> None:
    """Be one of the ranks; the first prints what it found."""
    torch.set_num_threads(1)
    return_large_blocks()  # until memory is measured: what is freed is then not there any more
    topology = topology_from_environment()
    run = replace(run, distributed=replace(run.distributed, workers=topology.world_size))
    with joined(topology, torch.device("cpu"), 120.0):
        dataset = load(run.data, run.seed)
        bandwidth, latency = _links(topology, run.distributed.strategy)
        import_engines()
        memory = AnonymousMemory()
        member = _Member(run, dataset, topology)
        member.steps(2)
        with memory.of("step"):
            sent = member.steps(1)
        if run.distributed.strategy != "fsdp":
            keep_freed_memory()
        seconds = []
        with closing(member.engine):
            for _ in range(_ROUNDS):
                _meet(topology)
                started = time.perf_counter()
                member.steps(_ROUND)
                seconds.append((time.perf_counter() - started) / _ROUND)
        said = {
            "memory": memory.most["step"],
            "bytes": sent,
            "step": median(seconds),
            "bandwidth": bandwidth,
            "latency": latency,
        }
    if topology.rank == 0:
        print(json.dumps(said))


class _Member:
    """Takes one rank's part of the steps on the first global batch."""

    def __init__(self, run: Run, dataset: Dataset, topology: Topology) -> None:
        task = task_of(dataset, run)
        model = build_model(run, task, Path(), torch.device("cpu"))
        self.engine = build_engine(run, model, task, topology, Path())
        rows = torch.arange(run.distributed.batch_size) % len(dataset.train)
        weights = example_weights(task, dataset.train)[rows]
        self._rows, self._train = rows.chunk(topology.world_size)[topology.rank], dataset.train
        self._weight = int(weights.chunk(topology.world_size)[topology.rank].sum())
        self._divisor = int(weights.sum()) / topology.world_size

    def steps(self, count: int) -> int:
        """Take steps, the last of which ends with an exchange; return the bytes that it sent."""
        self.engine.begin(TrainTotals())
        for step in range(1, count + 1):
            fields = self._train.take(self._rows)
            self.engine.step(TrainingBatch(fields, self._weight, self._divisor, seed=0))
            sent = sum(self.engine.after_step(step, count))
        self.engine.finish()
        return sent


def _links(topology: Topology, strategy: str) -> tuple[float, float]:
    """Return the bandwidth and the latency of which two timed exchanges of a strategy tell.

    Of the same bytes, gloo's all-gather may take several times as long as its all-reduce.
    """
    world = topology.world_size
    if world == 1:
        return 1e9, 0.0
    exchange, passes = (_gathers, 3) if strategy == "fsdp" else (_all_reduce, 2)
    messages = passes * (world - 1)
    short, long = _timed(exchange, 1, topology), _timed(exchange, _LONG, topology)
    sent = messages / world * 4 * _LONG
    return sent / max(1e-9, long - short), short / messages


def _timed(exchange: Callable[[Tensor, Tensor], None], count: int, topology: Topology) -> float:
    part = torch.zeros(max(1, count // topology.world_size))
    whole, seconds = torch.zeros(len(part) * topology.world_size), []
    for _ in range(_MESSAGES):
        _meet(topology)
        started = time.perf_counter()
        exchange(whole, part)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _all_reduce(whole: Tensor, _part: Tensor) -> None:
    dist.all_reduce(whole)


def _gathers(whole: Tensor, part: Tensor) -> None:
    """Exchange as FSDP does: weights for both passes, then gradients."""
    for _ in range(2):
        dist.all_gather_into_tensor(whole, part)
    dist.reduce_scatter_tensor(part, whole)


def _meet(topology: Topology) -> None:
    if topology.world_size > 1:
        dist.barrier()


if __name__ == "__main__":
    sys.exit(main())
