"""Our command, as a user types it; `--variant` is LAUNCHER=WORKERS[/THREADS[/LOGGED]].

With LOGGED, the loss of every so-many-th step is written.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from job import arguments

from heliotrope.cli import main as command
from heliotrope.system.process_exit import as_process


def train() -> int:
    """Train, print the times, and return the exit code."""
    options = arguments(__doc__)
    job = json.loads(options.job.read_text())
    launcher, _, workers = options.variant.partition("=")
    workers, threads, logged, *_ = [*workers.split("/"), "null", "null"]
    directory: Path = options.directory / "run"
    model = job["model"]
    code = command(
        [
            "distributed",
            "data=fashion_mnist",
            "optimizer=adam",
            f"optimizer.lr={job['lr']}",
            f"model={model['name']}",
            f"model.channels={model['channels']}",
            f"model.kernel_size={model['kernel_size']}",
            f"model.hidden={model['hidden']}",
            f"seed={job['seed']}",
            f"distributed.launcher={launcher}",
            f"distributed.workers={workers}",
            f"distributed.epochs={job['epochs']}",
            f"distributed.batch_size={job['batch_size']}",
            f"distributed.evaluate_every={job['epochs']}",
            f"distributed.cpus_per_worker={threads}",
            f"distributed.log_every_steps={logged}",
            f"hydra.run.dir={directory}",
        ]
    )
    if code:
        return code
    events = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    epochs = [event for event in events if event["event"] == "train"]
    result = json.loads((directory / "result.json").read_text())
    steps: list[float] = []  # the mean of its epoch for each: no step is timed alone
    for epoch in epochs:
        number = epoch["steps"] - len(steps)
        steps += [epoch["timing"]["step_ms"] / 1e3] * number
    versions = {name: version(name) for name in ("torch", "numpy", "ray")}
    accuracy = result["metrics"]["test/accuracy"]
    print(json.dumps({"steps": steps, "accuracy": accuracy, "versions": versions}))
    return 0


if __name__ == "__main__":
    as_process(train)
