"""How much memory a sharded worker needs: 1/N of a model of 100 M parameters, and one layer.

    python scripts/benchmarks/sharded_memory.py --output sharded_memory.json

A perceptron of 24 equal layers with Adam: 16 bytes a parameter for weights, gradients and the
optimizer's state. One process holds it whole; two and four divide it. Each process says its most
anonymous memory, above what it had when its libraries were there and it had met the others: up to
the first step, in training, in evaluation, and to save its part of a checkpoint. The model is built
by another process, which is not counted, and mapped from that one's file. One process saves
beside training, for which it copies weights and optimizer; those with a part do not.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import record
import torch
import torch.multiprocessing
from anonymous_memory import AnonymousMemory, import_engines
from heliotrope.distributed.communication.process_group import joined  # installed: this folder
from heliotrope.distributed.loop.evaluation import evaluate_by_ranks  # is not the checkout's
from heliotrope.distributed.loop.saver import Saver
from heliotrope.distributed.strategies.build import build_engine, build_model
from heliotrope.distributed.strategies.initial_weights import initial_weights
from heliotrope.distributed.topology import Topology
from hydra import compose, initialize_config_dir
from rich.table import Table
from torch.distributed import FileStore

from heliotrope import config
from heliotrope.config import Run
from heliotrope.data import load
from heliotrope.models import build
from heliotrope.runs.checkpoint import Checkpoint, Shard
from heliotrope.runs.events import Tracker
from heliotrope.system.allocator import keep_freed_memory, return_large_blocks
from heliotrope.tasks import task_of
from heliotrope.training.loop import TrainingBatch, TrainTotals

_STAGES = ("start", "training", "evaluation", "checkpoint")
_BYTES = 16  # of a parameter
_BATCH, _STEPS = 8, 3


def main() -> int:
    """Measure, print a table, and store it."""
    parser = record.parser(__doc__)
    parser.add_argument("--width", type=int, default=2048, help="of each layer")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--processes", type=_numbers, default=[1, 2, 4])
    options = parser.parse_args()
    said: dict[str, Any] = record.begin() | {"width": options.width, "layers": options.layers}
    table = Table(title="Most memory of a rank, MB", title_justify="left")
    for column in ("processes", *_STAGES, "1/N and one layer"):
        table.add_column(column, justify="right")
    for world in options.processes:
        run = _run(world, options.width, options.layers)
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            ranks = _measured(run, Path(folder), world)
        said[f"{world} processes"] = ranks
        record.console().print(f"{world} processes: {ranks}", style="dim")
        most = {stage: max(rank[stage] for rank in ranks) for stage in _STAGES}
        parameters, layer = ranks[0]["parameters"], options.width * (options.width + 1)
        bar = _BYTES * (parameters / world + (layer if world > 1 else 0))
        numbers = (*most.values(), bar)
        table.add_row(str(world), *(f"{number / 1e6:.0f}" for number in numbers))
    record.console().print(table)
    record.finish(said, options.output)
    return 0


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _run(world: int, width: int, layers: int) -> Run:
    strategy = "fsdp" if world > 1 else "ddp"
    overrides = [
        *("model=mlp", f"model.hidden={[width] * layers}", "model.dropout=0", "optimizer=adam"),
        *("distributed.launcher=torchrun", f"distributed.workers={world}", "device=cpu"),
        f"distributed.strategy={strategy}",
        f"distributed.sharded_checkpoints={world > 1}",
    ]
    config.register()
    with initialize_config_dir(config_dir=str(config.conf_dir()), version_base="1.3"):
        return config.load(compose("config", overrides=overrides), "distributed")


def _measured(run: Run, folder: Path, world: int) -> list[dict[str, int]]:
    """Return what each rank says; this process is the builder."""
    model = build(run.model, task_of(load(run.data, run.seed), run), run.seed)
    with initial_weights(run, model, folder):
        torch.multiprocessing.spawn(_be_rank, (world, run, folder), nprocs=world)  # type: ignore[no-untyped-call]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def _be_rank(rank: int, world: int, run: Run, folder: Path) -> None:
    torch.set_num_threads(1)
    (return_large_blocks if world > 1 else keep_freed_memory)()
    topology, device = Topology(rank, world, rank), torch.device("cpu")
    dataset = load(run.data, run.seed)
    task, store = task_of(dataset, run), FileStore(str(folder / "store"), world)
    batch = TrainingBatch(dataset.train.take(torch.arange(_BATCH)), _BATCH, float(_BATCH), seed=0)
    import_engines()
    with joined(topology, device, 300, store):
        memory = AnonymousMemory()
        with memory.of("start"):
            model = build_model(run, task, folder, device)
            parameters = sum(p.numel() for p in model.parameters())
            engine = build_engine(run, model, task, topology, folder)
        with memory.of("training"):
            engine.begin(TrainTotals())
            for step in range(_STEPS):
                engine.step(batch)
                engine.after_step(step + 1, _STEPS)
            engine.finish()
        with memory.of("evaluation"), engine.evaluating() as evaluated:
            how = (32, topology, device, engine.passes_exchange)
            evaluate_by_ranks(evaluated, task, dataset.test.subset(slice(0, 64)), *how)
        with memory.of("checkpoint"):
            snapshot = engine.snapshot()
            part = Shard(rank, world, "one", 100) if world > 1 else None
            tracker = Tracker(folder / "metrics.jsonl") if rank == 0 else None
            with Saver(folder, engine.optimizer, tracker, 1, part) as saver:
                saver.save(Checkpoint(_STEPS, snapshot.model, snapshot.arrays, {}), ())
    (folder / f"{rank}.json").write_text(json.dumps(memory.most | {"parameters": parameters}))


if __name__ == "__main__":
    sys.exit(main())
