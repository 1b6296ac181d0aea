"""Flower's own simulation: ServerApp, ClientApp and FedAvg.

`--variant shipped` leaves its resources as they are by default; `tuned` gives each client one CPU
and each process one thread, which is the fastest here.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
# Of each Ray process, and read when torch is imported.
os.environ.update({"OMP_NUM_THREADS": "1"} if "--variant=tuned" in sys.argv else {})

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from problem import arguments, read, report, train_locally


def client_app(path: Path) -> ClientApp:
    """Return the app of every client: a plain torch loop on its own examples."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        problem = read(path)
        client = int(context.node_config["partition-id"])
        model = problem.module()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        train_locally(model, torch.optim.SGD(model.parameters(), lr=problem.lr), problem, client)
        metrics = MetricRecord({"num-examples": len(problem.rows(client))})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def main() -> None:
    """Train, and print the times."""
    options = arguments(__doc__)
    problem = read(options.problem)
    resources = {
        "init_args": {"num_cpus": len(os.sched_getaffinity(0))},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    times: list[float] = []
    results: dict[str, torch.Tensor] = {}
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        strategy = FedAvg(
            fraction_train=problem.clients_per_round / problem.clients,
            fraction_evaluate=0.0,
            min_train_nodes=problem.clients_per_round,
            min_available_nodes=problem.clients,
        )

        def ended(server_round: int, arrays: ArrayRecord) -> None:
            del server_round, arrays
            times.append(time.time())

        result = strategy.start(
            grid, ArrayRecord(dict(problem.weights)), num_rounds=options.rounds, evaluate_fn=ended
        )
        results.update(result.arrays.to_torch_state_dict())

    run_simulation(
        server_app=server,
        client_app=client_app(options.problem.resolve()),
        num_supernodes=problem.clients,
        backend_config=resources if options.variant == "tuned" else None,
    )
    report(options, times, results, ("flwr", "ray"))


if __name__ == "__main__":
    sys.exit(main())
