"""A data-parallel job of ours and of its peers: step time, whole job, and what is not stepping.

    python scripts/benchmarks/data_parallel.py --repeats 3 --output data_parallel.json

A CNN on Fashion-MNIST, 3 epochs on two workers and on one process: start-up, a checkpoint every
epoch and the final evaluation included. Each run is a process of its own, and the peers take
turns, so that a busy moment hits all of them. A step's time is the mean over the epochs after
the first; the overhead is the whole job without its steps. Ratios are medians of those to the peer
beside which an entry stands, in the same repetition: "DDP under torchrun" and "bare loop".
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import record
import torch
from rich.table import Table
from running import Entry, run, wait_until_idle

from heliotrope.config import chosen
from heliotrope.data import load
from heliotrope.models import build
from heliotrope.tasks import task_of

_SEED = 7
_WORKERS = 2


@dataclass
class Measured:
    """What was measured of one entry, a number for each repetition; seconds."""

    entry: Entry
    walls: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    overheads: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def groups() -> list[list[Entry]]:
    """Return all that is measured: each group's first entry is what the others stand beside."""
    ours, loop = "heliotrope_job.py", "torch_loop.py"
    return [
        [
            Entry("DDP under torchrun", "bare", loop, "threads=1", processes=_WORKERS),
            Entry("heliotrope, ray launcher", "heliotrope", ours, f"ray={_WORKERS}/1"),
            Entry("heliotrope, torchrun launcher", "heliotrope", ours, f"torchrun={_WORKERS}/1"),
            Entry("Ray Train", "ray_train", "ray_train.py", f"workers={_WORKERS}"),
            Entry("Lightning", "lightning", "lightning_trainer.py", f"workers={_WORKERS}"),
        ],
        [
            Entry("bare loop, 1 thread", "bare", loop, "threads=1"),
            Entry("heliotrope, inline, 1 thread", "heliotrope", ours, "inline=1/1"),
            Entry("the same, each step logged", "heliotrope", ours, "inline=1/1/1"),
        ],
        [
            Entry("bare loop, 2 threads", "bare", loop, "threads=2"),
            Entry("heliotrope, inline, 2 threads", "heliotrope", ours, "inline=1/2"),
        ],
    ]


def main() -> int:
    """Measure, print a table, and store everything."""
    parser = record.with_peers(record.parser(__doc__))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    peers = ["heliotrope", "bare", "ray_train", "lightning"]
    parser.add_argument("--peers", type=record.names(peers), default=peers, help="bare is needed")
    options = parser.parse_args()
    if "bare" not in options.peers:
        parser.error("--peers must hold bare: ratios are to it")
    console = record.console()
    measured = [
        [Measured(entry) for entry in group if entry.peer in options.peers] for group in groups()
    ]
    results = [result for group in measured for result in group]
    pythons = record.interpreters((result.entry.peer for result in results), options)
    said = record.begin()
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        _write(job, options.epochs)
        for repeat in range(options.repeats):
            for result in results:
                result.busy.append(wait_until_idle(options.patience))
                _measure(result, pythons[result.entry.peer], job, options.epochs)
                console.print(
                    f"{repeat + 1}/{options.repeats} {result.entry.label}: "
                    f"{result.walls[-1]:.1f} s, {result.steps[-1] * 1e3:.2f} ms a step",
                    style="dim",
                )
        said["config"] = json.loads(job.read_text())
    console.print(_table(measured, said["config"]))
    found = {f"{name} {number}" for result in results for name, number in result.versions.items()}
    console.print(f"versions: {', '.join(sorted(found))}")
    said["results"] = [asdict(result) for result in results]
    record.finish(said, options.output)
    return 0


def _write(path: Path, epochs: int) -> None:
    """Write what the peers read (see `peers/job.py`): `path` and the .npz beside it."""
    dataset = load(chosen("data", "fashion_mnist"), _SEED)
    model = chosen("model", "cnn", channels=[32, 64], kernel_size=3, hidden=[128])
    task = task_of(dataset)
    weights = build(model, task, _SEED).state_dict()
    keys = ("name", "channels", "kernel_size", "hidden")
    job = {
        "model": {key: asdict(model)[key] for key in keys} | {"classes": task.num_outputs},
        "epochs": epochs,
        "batch_size": 64,
        "lr": 0.001,
        "seed": _SEED,
    }
    path.write_text(json.dumps(job))
    train, test = (s.take(torch.arange(len(s))) for s in (dataset.train, dataset.test))
    np.savez(
        path.with_suffix(".npz"),
        inputs=train["image"].numpy(),
        targets=train["label"].numpy(),
        test_inputs=test["image"].numpy(),
        test_targets=test["label"].numpy(),
        **{f"weights/{name}": value.numpy() for name, value in weights.items()},
    )


def _measure(result: Measured, python: str, job: Path, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        answer = run(result.entry, python, str(job), f"--directory={directory}")
    steps = answer["steps"]
    steady = steps[len(steps) // epochs :] or steps
    result.walls.append(answer["wall"])
    result.steps.append(sum(steady) / len(steady))
    result.overheads.append(answer["wall"] - sum(steps))
    result.accuracies.append(answer["accuracy"])
    result.versions = answer["versions"]


def _table(groups: Sequence[Sequence[Measured]], config: dict[str, Any]) -> Table:
    title = f"CNN on Fashion-MNIST, global batch {config['batch_size']}, {config['epochs']} epochs"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    columns = (
        "ms/step best",
        "median",
        "worst",
        "ratio",
        "job, s",
        "ratio",
        "overhead, s",
        "ratio",
    )
    for column in (*columns, "accuracy"):
        table.add_column(column, justify="right")
    for group in groups:
        for result in group:
            table.add_row(
                result.entry.label,
                f"{min(result.steps) * 1e3:.2f}",
                f"{median(result.steps) * 1e3:.2f}",
                f"{max(result.steps) * 1e3:.2f}",
                _ratio(result.steps, group[0].steps),
                f"{median(result.walls):.1f}",
                _ratio(result.walls, group[0].walls),
                f"{median(result.overheads):.1f}",
                _ratio(result.overheads, group[0].overheads),
                f"{median(result.accuracies):.4f}",
            )
        table.add_section()
    return table


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    return f"{median(one / other for one, other in zip(ours, theirs, strict=True)):.3f}"


if __name__ == "__main__":
    sys.exit(main())
