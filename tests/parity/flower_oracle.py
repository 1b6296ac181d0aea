"""Trains with Flower's own simulation, and prints where the final arrays were saved.

Run as a program by `test_flower.py`, in a process of its own: Flower's simulation starts and
stops Ray by itself, and keeps process-wide state.

usage: python flower_oracle.py OUTPUT_DIR CONFIG.yaml ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from federated.engine.context import assemble, divide
from federated.flower.app import client_app
from heliotrope import registry
from heliotrope.config import Run, from_resolved
from heliotrope.data import load
from heliotrope.tasks import task_of


def simulate(runs: dict[str, Run], output: Path) -> None:
    """Train each run with every client in each round; save its final arrays by its name.

    All in one simulation, which takes long to start: the clients are the same for all, since
    a strategy tells them what differs.
    """
    first = next(iter(runs.values()))
    clients = first.federated.clients_per_round
    dataset = load(first.data, first.seed)
    start = assemble(first, task_of(dataset, first), dataset.train, divide(first, dataset))
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for name, run in runs.items():
            cfg = run.federated.strategy
            strategy = registry.entry("strategy", cfg.name).build(
                vars(cfg), client_learning_rate=run.optimizer.lr
            )
            strategy.fraction_evaluate = 0.0
            strategy.min_train_nodes = strategy.min_available_nodes = clients
            result = strategy.start(
                grid, ArrayRecord(dict(start.global_weights)), num_rounds=run.federated.rounds
            )
            arrays = {key: array.numpy() for key, array in result.arrays.items()}
            np.savez(output / f"{name}.npz", **arrays)

    run_simulation(
        server_app=app,
        client_app=client_app(first),
        num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    configs = [Path(argument) for argument in sys.argv[2:]]
    simulate({path.stem: from_resolved(path) for path in configs}, Path(sys.argv[1]))
