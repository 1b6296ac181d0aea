"""The ServerApp, as Flower's quickstart for PyTorch writes it, which also notes the time."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; write the end of each, the first's begin before, to the file `report`."""
    times: list[float] = []

    def ended(server_round: int, arrays: ArrayRecord) -> None:
        del server_round, arrays
        times.append(time.time())

    rounds = int(context.run_config["rounds"])
    result = FedAvg(fraction_train=1.0, fraction_evaluate=0.0).start(
        grid, ArrayRecord(Net().state_dict()), num_rounds=rounds, evaluate_fn=ended
    )
    loss = result.train_metrics_clientapp[rounds]["train_loss"]
    Path(str(context.run_config["report"])).write_text(json.dumps({"times": times, "loss": loss}))
