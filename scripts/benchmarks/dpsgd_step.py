"""A step of DP-SGD beside Opacus', on the same model and examples, in turn on this machine.

    python scripts/benchmarks/dpsgd_step.py --output dpsgd_step.json

MNIST, an MLP 784-128-10 and the small convolutional network of Opacus' example, expected batches of
32 and 256, clip 1, noise 1, one thread each. A run is a process of its own; its first epoch does
not count.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import record
import torch
from rich.table import Table
from running import Entry, run, wait_until_idle

from heliotrope.config import chosen
from heliotrope.data import Dense, load

_SEED, _EPOCHS = 7, 2
_CONVNET = Path(__file__).resolve().parent / "plugins" / "sample_convnet.py"
_MODELS: dict[str, Sequence[str]] = {
    "mlp": ("model=mlp", "model.hidden=[128]"),
    "convnet": (f"plugins=[{_CONVNET}]", "model=SampleConvNet"),
}
_BATCHES = (32, 256)
_OURS = (
    *("data=mnist", "data.fit=none", "data.validation_fraction=0", "optimizer=sgd"),
    *("distributed.launcher=inline", "distributed.workers=1", "distributed.cpus_per_worker=1"),
    *("distributed/privacy=dpsgd", "distributed.privacy.noise_multiplier=1"),
    *(f"distributed.epochs={_EPOCHS}", f"distributed.evaluate_every={_EPOCHS}"),
)


def main() -> int:
    """Measure, print the ratios, and store them."""
    parser = record.with_peers(record.parser(__doc__))
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    python = record.interpreters(["opacus"], options)["opacus"]
    console, said = record.console(), record.begin()
    table = Table(title="ms a step of DP-SGD, medians", title_justify="left")
    for column in ("", "heliotrope", "Opacus", "ratio", "from", "to"):
        table.add_column(column, justify="right" if column else "left")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "mnist.npz"
        _write(data)
        for model in _MODELS:
            for batch in _BATCHES:
                pairs = []
                for _ in range(options.pairs):
                    wait_until_idle(options.patience)
                    pairs.append((_ours(model, batch), _theirs(python, data, model, batch)))
                    console.print(f"{model}, {batch}: {pairs[-1]}", style="dim")
                said[f"{model}, {batch}"] = pairs
                ratios = [ours / theirs for ours, theirs in pairs]
                each = (f"{1e3 * median(times):.2f}" for times in zip(*pairs, strict=True))
                spread = (f"{value:.2f}" for value in (median(ratios), min(ratios), max(ratios)))
                table.add_row(f"{model}, batch {batch}", *each, *spread)
    console.print(table)
    record.finish(said, options.output)
    return 0


def _write(path: Path) -> None:
    train = load(chosen("data", "mnist", validation_fraction=0.0), _SEED).train
    image, label = train.fields["image"], train.fields["label"]
    assert isinstance(image, Dense)
    assert isinstance(label, Dense)
    images = image.values.reshape(len(train), 28, 28).to(torch.uint8).numpy()
    np.savez(path, images=images, labels=label.values.numpy())


def _theirs(python: str, data: Path, model: str, batch: int) -> float:
    entry = Entry("Opacus", "opacus", "opacus_step.py", f"{model},{batch}")
    seconds: float = run(entry, python, str(data), f"--epochs={_EPOCHS}")["seconds"]
    return seconds


def _ours(model: str, batch: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        keys = (f"distributed.batch_size={batch}", f"hydra.run.dir={folder}/run")
        command = [
            sys.executable,
            "-m",
            "heliotrope",
            "distributed",
            *_OURS,
            *_MODELS[model],
            *keys,
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    trained = [e for e in map(json.loads, lines) if e["event"] == "train"][1:]
    return sum(event["timing"]["step_ms"] for event in trained) / len(trained) / 1e3


if __name__ == "__main__":
    sys.exit(main())
