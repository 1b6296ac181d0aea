"""A data-parallel job of ours and of its peers: step time, whole job, and what is not stepping.

    python scripts/benchmarks/data_parallel.py --repeats 3 --output data_parallel.json

A CNN on Fashion-MNIST, 3 epochs on two workers and on one process: start-up, a checkpoint every
epoch and the final evaluation included. Each run is a process of its own, and the peers take
turns, so that a busy moment hits all of them. A step's time is the mean over the epochs after
the first; the overhead is the whole job without its steps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from environments import interpreter
from rich.console import Console
from rich.table import Table
from running import ROOT, Entry, run, wait_until_idle

from heliotrope.config import CnnConfig, DataConfig
from heliotrope.data import load
from heliotrope.models import build
from heliotrope.resources import machine
from heliotrope.rundir import git_commit
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


def entries() -> list[Entry]:
    """Return all that is measured, ours first."""
    ours, loop = "heliotrope_job.py", "torch_loop.py"
    return [
        Entry("heliotrope, ray launcher", "heliotrope", ours, f"ray={_WORKERS}/1"),
        Entry("heliotrope, torchrun launcher", "heliotrope", ours, f"torchrun={_WORKERS}/1"),
        Entry("DDP under torchrun", "bare", loop, "threads=1", processes=_WORKERS),
        Entry("Ray Train", "ray_train", "ray_train.py", f"workers={_WORKERS}"),
        Entry("Lightning", "lightning", "lightning_trainer.py", f"workers={_WORKERS}"),
        Entry("heliotrope, inline, 1 thread", "heliotrope", ours, "inline=1/1"),
        Entry("bare loop, 1 thread", "bare", loop, "threads=1"),
        Entry("heliotrope, inline, 2 threads", "heliotrope", ours, "inline=1/2"),
        Entry("bare loop, 2 threads", "bare", loop, "threads=2"),
    ]


def main() -> int:
    """Measure, print a table, and store everything."""
    options = _options()
    console = Console(width=None if Console().is_terminal else 130)
    given = dict(pair.split("=", 1) for pair in options.peer_python) | {
        "heliotrope": sys.executable
    }
    results = [Measured(entry) for entry in entries()]
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        _write(job, options.epochs)
        for repeat in range(options.repeats):
            for result in results:
                peer = result.entry.peer
                python = given.get(peer) or str(interpreter(peer, ROOT / ".venv-benchmarks"))
                result.busy.append(wait_until_idle(options.patience))
                _measure(result, python, job, options.epochs)
                console.print(
                    f"{repeat + 1}/{options.repeats} {result.entry.label}: "
                    f"{result.walls[-1]:.1f} s, {result.steps[-1] * 1e3:.2f} ms a step",
                    style="dim",
                )
        config = json.loads(job.read_text())
    console.print(_table(results, config))
    console.print(f"machine: {machine()}, commit {git_commit()}")
    found = {f"{name} {number}" for result in results for name, number in result.versions.items()}
    console.print(f"versions: {', '.join(sorted(found))}")
    if options.output:
        record: dict[str, Any] = {
            "machine": machine(),
            "git_commit": git_commit(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "load_average": os.getloadavg(),
            "config": config,
            "results": [asdict(result) for result in results],
        }
        options.output.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--patience", type=float, default=60.0, help="seconds to wait for idle CPUs"
    )
    parser.add_argument("--output", type=Path, help="JSON file for all that was measured")
    parser.add_argument(
        "--peer-python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="use this interpreter for a peer instead of making an environment",
    )
    return parser.parse_args()


def _write(path: Path, epochs: int) -> None:
    """Write what the peers read (see `peers/job.py`): `path` and the .npz beside it."""
    dataset = load(DataConfig(name="fashion_mnist"), _SEED)
    model = CnnConfig(name="cnn", channels=[32, 64], kernel_size=3, hidden=[128])
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
    np.savez(
        path.with_suffix(".npz"),
        inputs=dataset.train.inputs.numpy(),
        targets=dataset.train.targets.numpy(),
        test_inputs=dataset.test.inputs.numpy(),
        test_targets=dataset.test.targets.numpy(),
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


def _table(results: Sequence[Measured], config: dict[str, Any]) -> Table:
    title = f"CNN on Fashion-MNIST, global batch {config['batch_size']}, {config['epochs']} epochs"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("ms/step best", "median", "worst", "job, s", "overhead, s", "accuracy"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            result.entry.label,
            f"{min(result.steps) * 1e3:.2f}",
            f"{median(result.steps) * 1e3:.2f}",
            f"{max(result.steps) * 1e3:.2f}",
            f"{median(result.walls):.1f}",
            f"{median(result.overheads):.1f}",
            f"{median(result.accuracies):.4f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
