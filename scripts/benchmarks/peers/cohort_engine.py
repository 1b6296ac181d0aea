"""Heliotrope's federated mode, as `python -m federated` runs it, on a benchmark's problem.

`--variant ray=WORKERS`, `inprocess` or `sequential` (in-process, one client after another, as
torch's own loop does), which take `=THREADS`; with `,private` after it, clients are drawn, clipped
and given noise by `federated/privacy=central`. Everything is that of a run: the server loop,
Flower's strategy and messages, events on disk; only data and division come from the problem.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from configs import model_config
from dataset import examples_of, info_of
from problem import CLIP, NOISE, Problem, arguments, read, report

from federated import components
from federated.engine.execution import ExecutionPlan
from federated.job import run_job
from heliotrope.config import DistributedConfig, FederatedConfig, Run, chosen
from heliotrope.data import Dataset, Partition
from heliotrope.data.columns import Raw, Values
from heliotrope.data.dataset import Fitting
from heliotrope.data.preparation import Preparation, Statistics
from heliotrope.runs import checkpoint
from heliotrope.runs.clock import process_age

_TEST_EXAMPLES = 1000  # of the last round's evaluation, which is not timed


def main() -> None:
    """Train, and print the times."""
    options = arguments(__doc__)
    problem = read(options.problem)
    way, _, private = options.variant.partition(",")
    pool, _, count = way.partition("=")
    run = _run(problem, options.rounds, pool, int(count) if count else None)
    if private:
        keys = {"clip": CLIP, "noise_multiplier": NOISE}
        run = replace(
            run,
            federated=replace(
                run.federated, privacy=chosen("federated/privacy", "central", **keys)
            ),
        )
    started = time.time() - process_age()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        _train(run, problem, directory)
        events = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
        result = json.loads((directory / "result.json").read_text())
        saved = checkpoint.latest(directory / "checkpoints", print)
    assert saved is not None
    seconds = [result["startup_seconds"]]
    seconds += [event["seconds"] for event in events if event["event"] == "train"]
    report(
        options,
        [started + value for value in seconds],
        saved.model,
        ("flwr", "ray"),
        client_training=str(ExecutionPlan(**saved.state["client_training"])),
        peak_rss_bytes=result["peak_rss_bytes"],
    )


def _run(problem: Problem, rounds: int, pool: str, count: int | None) -> Run:
    given = {key: value for key, value in problem.model.items() if key != "classes"}
    sequential = pool == "sequential"
    return Run(
        name="benchmark",
        seed=problem.seed,
        model=model_config(**given),
        data=chosen("data", "fashion_mnist"),
        optimizer=chosen("optimizer", "sgd", lr=problem.lr),
        distributed=DistributedConfig(),
        federated=FederatedConfig(
            rounds=rounds,
            clients_per_round=problem.clients_per_round,
            local_epochs=problem.local_epochs,
            batch_size=problem.batch_size,
            pool="inprocess" if sequential else pool,
            client_training="sequential" if sequential else "auto",
            workers=(count or 1) if pool == "ray" else 1,
            cpus_per_worker=None if pool == "ray" else count,
            evaluate_every=rounds,
            checkpoint_every=rounds,
            partition=chosen("federated/partition", "iid", clients=problem.clients),
            strategy=chosen("federated/strategy", "fedavg"),
        ),
    )


def _train(run: Run, problem: Problem, directory: Path) -> None:
    train, info = examples_of(problem), info_of(problem)
    empty, test = (train.subset(slice(count)) for count in (0, _TEST_EXAMPLES))
    rows = Raw({"target": Values(problem.targets.numpy())})
    prepared = Preparation((), "none", info.task)  # as the problem has it
    fitting = Fitting((), rows, rows, rows, Statistics(()), prepared)
    dataset = Dataset("benchmark", train, empty, test, info, prepared, fitting)
    parts = Partition(problem.indices.numpy(), problem.offsets.numpy())
    with (
        patch.object(components, "load", lambda *_, **__: dataset),
        patch.object(components, "divide", lambda *_, **__: parts),
    ):
        run_job(run, directory)


if __name__ == "__main__":
    sys.exit(main())
