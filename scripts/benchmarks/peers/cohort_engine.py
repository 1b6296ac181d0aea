"""Heliotrope's federated mode, as `python -m federated` runs it, on a benchmark's problem.

`--variant inprocess` or `ray=WORKERS`. Everything is that of a run: the server loop, Flower's
strategy and messages, events on disk; only data and division come from the problem.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from problem import Problem, arguments, read, report

from federated import simulation
from federated.job import run_job
from heliotrope import checkpoint
from heliotrope.config import (
    CnnConfig,
    DataConfig,
    DistributedConfig,
    FederatedConfig,
    MlpConfig,
    ModelConfig,
    PartitionConfig,
    Run,
    SgdConfig,
    StrategyConfig,
)
from heliotrope.data import Dataset, Partition, Split
from heliotrope.tracking import process_age

_TEST_EXAMPLES = 1000  # of the last round's evaluation, which is not timed


def main() -> None:
    """Train, and print the times."""
    options = arguments(__doc__)
    problem = read(options.problem)
    pool, _, workers = options.variant.partition("=")
    run = _run(problem, options.rounds, pool, int(workers or 1))
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
        client_training=saved.state["client_training"],
        peak_rss_bytes=result["peak_rss_bytes"],
    )


def _run(problem: Problem, rounds: int, pool: str, workers: int) -> Run:
    model = {key: value for key, value in problem.model.items() if key != "classes"}
    kinds: dict[str, type[ModelConfig]] = {"mlp": MlpConfig, "cnn": CnnConfig}
    return Run(
        name="benchmark",
        seed=problem.seed,
        model=kinds[problem.model["name"]](**model),
        data=DataConfig(name="fashion_mnist"),
        optimizer=SgdConfig(name="sgd", lr=problem.lr),
        distributed=DistributedConfig(),
        federated=FederatedConfig(
            rounds=rounds,
            clients_per_round=problem.clients_per_round,
            local_epochs=problem.local_epochs,
            batch_size=problem.batch_size,
            pool=pool,
            workers=workers,
            evaluate_every=rounds,
            checkpoint_every=rounds,
            partition=PartitionConfig(name="iid", clients=problem.clients),
            strategy=StrategyConfig(name="fedavg"),
        ),
    )


def _train(run: Run, problem: Problem, directory: Path) -> None:
    train = Split(problem.inputs, problem.targets)
    test = Split(train.inputs[:_TEST_EXAMPLES], train.targets[:_TEST_EXAMPLES])
    names = tuple(str(label) for label in range(problem.model["classes"]))
    empty = Split(train.inputs[:0], train.targets[:0])
    dataset = Dataset("benchmark", train, empty, test, names)
    parts = Partition(problem.indices.numpy(), problem.offsets.numpy())
    with (
        patch.object(simulation, "load", lambda *_: dataset),
        patch.object(simulation, "divide", lambda *_: parts),
    ):
        run_job(run, directory)


if __name__ == "__main__":
    sys.exit(main())
