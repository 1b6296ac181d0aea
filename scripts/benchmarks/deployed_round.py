"""Seconds a deployed round takes, beside an app written as Flower's quickstart for PyTorch is.

    python scripts/benchmarks/deployed_round.py --nodes 3 --output deployed_round.json

Workload A of cohort.py (2NN, Fashion-MNIST, 600 examples a client, E=1, B=10, SGD 0.1) on `nodes`
clients, which all take part in each round: the one SuperLink and the same SuperNodes, with TLS and
node authentication, run both apps in turn. Both read the same rows from the node's data folder.
Timed are rounds without evaluation; the first of each run, in which nodes fetch the app, counts
not. Flower starts a process for each message, so that a round is mostly imports. The exit code is
1 if their training losses are far apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import record
from rich.table import Table
from workloads import SEED, WORKLOADS

from heliotrope.config import DistributedConfig, FederatedConfig, Run, chosen
from heliotrope.data import load
from heliotrope.modes import mode_module

_EXAMPLE = Path(__file__).resolve().parent / "peers" / "deployed_example"
_EXAMPLES, _TEST = 600, 1000  # of each client, and of the last round's evaluation
_LOSS_TOLERANCE = 0.5  # initial weights and batches differ, and pixels are scaled otherwise


def main() -> int:
    """Measure both, print a table, and store everything."""
    options = _options()
    said = record.begin() | {"workload": WORKLOADS["A"].title, "nodes": options.nodes}
    deployment, trial = (mode_module("federated", f"deploy.{n}") for n in ("deployment", "trial"))
    with tempfile.TemporaryDirectory() as folder:
        images, labels = _rows(options.nodes)
        run = _run(Path(folder), images, labels, options)
        site = deployment.prepare(run, Path(folder) / "site", ["127.0.0.1"], options.nodes)
        for client in range(options.nodes):
            _give(site.layout.node(client))
        shutil.copytree(_EXAMPLE, Path(folder) / "example")
        with trial.started(site) as federation:
            results = _measure(federation, Path(folder), options)
    table = Table("", "median", "best", "worst", "x Flower's", "loss")
    theirs = median(results["Flower's example"]["seconds"])
    for label, result in results.items():
        spent = result["seconds"]
        columns = [f"{each:.2f} s" for each in (median(spent), min(spent), max(spent))]
        table.add_row(label, *columns, f"{median(spent) / theirs:.2f}", f"{result['loss']:.4f}")
    record.console().print(table)
    record.finish(said | {"results": results}, options.output)
    ours, others = (result["loss"] for result in results.values())
    return 0 if abs(ours / others - 1) < _LOSS_TOLERANCE else 1  # or they do not do the same work


def _options() -> argparse.Namespace:
    parser = record.parser(__doc__)
    parser.add_argument("--nodes", type=int, default=WORKLOADS["A"].clients_per_round)
    parser.add_argument("--rounds", type=int, default=4, help="of a run; the first counts not")
    parser.add_argument("--repeats", type=int, default=1)
    return parser.parse_args()


def _rows(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images in bytes [N, 28, 28] and labels int64 [N] of the nodes, and of a test."""
    dataset = load(chosen("data", WORKLOADS["A"].dataset), SEED)
    assert dataset.fitting is not None
    columns = dataset.fitting.train.columns
    rows = np.random.default_rng(SEED).permutation(len(dataset.train))
    rows = rows[: nodes * _EXAMPLES + _TEST]
    return columns["image"].values[rows, 0], columns["label"].values[rows]


def _run(folder: Path, images: np.ndarray, labels: np.ndarray, options: argparse.Namespace) -> Run:
    workload = WORKLOADS["A"]
    np.savez(folder / "test.npz", x=images[-_TEST:], y=labels[-_TEST:])
    np.savez(folder / "train.npz", x=images[:-_TEST], y=labels[:-_TEST])
    paths = {"path": str(folder / "train.npz"), "test": str(folder / "test.npz")}
    return Run(
        name="benchmark",
        seed=SEED,
        model=workload.model,
        data=chosen("data", "arrays", **paths),
        optimizer=chosen("optimizer", "sgd", lr=workload.lr),
        distributed=DistributedConfig(),
        federated=FederatedConfig(
            rounds=options.rounds,
            clients_per_round=options.nodes,
            local_epochs=workload.local_epochs,
            batch_size=workload.batch_size,
            evaluate_every=options.rounds,
            checkpoint_every=options.rounds,
            partition=chosen("federated/partition", "iid", clients=options.nodes),
            strategy=chosen("federated/strategy", "fedavg"),
        ),
    )


def _give(node: Path) -> None:
    """Write the rows of a node once more, as the example reads them."""
    with np.load(node / "rows.npz") as file:
        (values,) = (file[name] for name in file.files if name.startswith("values/"))
        (codes,) = (file[name] for name in file.files if name.startswith("codes/"))
    np.savez(node / "example.npz", images=values[:, 0], labels=codes.astype(np.int64))


def _measure(federation: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run both apps in turn; return the seconds of each round that counts, and the last loss."""
    apps: dict[str, Callable[[int], tuple[list[float], float]]] = {
        "Heliotrope": lambda number: _ours(federation, folder / f"run-{number}"),
        "Flower's example": lambda number: _theirs(federation, folder, number, options.rounds),
    }
    results: dict[str, Any] = {label: {"seconds": []} for label in apps}
    for number in range(options.repeats):
        for label, run in apps.items():
            times, loss = run(number)
            results[label]["seconds"] += np.diff(times)[1:].tolist()
            results[label]["loss"] = loss
    return results


def _ours(federation: Any, directory: Path) -> tuple[list[float], float]:
    _flower_run(federation, federation.deployment.layout.app, {"directory": str(directory)})
    events = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    trained = [event for event in events if event["event"] == "train"]
    return [0.0, *(event["seconds"] for event in trained)], trained[-1]["train/loss"]


def _theirs(federation: Any, folder: Path, number: int, rounds: int) -> tuple[list[float], float]:
    report = folder / f"example-{number}.json"
    _flower_run(federation, folder / "example", {"rounds": rounds, "report": str(report)})
    told = json.loads(report.read_text())
    return told["times"], told["loss"]


def _flower_run(federation: Any, app: Path, config: Mapping[str, object]) -> None:
    """Run an app on the federation until it ends."""
    said = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    command = ["flwr", "run", f"{app}", "heliotrope", "--stream", "--run-config", said]
    done = subprocess.run(
        command, env=dict(federation.environment), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} has failed:\n{(done.stdout + done.stderr)[-4000:]}")


if __name__ == "__main__":
    sys.exit(main())
