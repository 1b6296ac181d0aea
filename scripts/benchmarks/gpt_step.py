"""A data-parallel step of the small GPT of `experiment=shakespeare` beside a plain torch loop.

    python scripts/benchmarks/gpt_step.py --pairs 7 --output gpt_step.json

The same weights to begin with, the same windows of text, Adam, one process and one thread each. The
plain loop has its examples ready in memory and does what a step needs and nothing else: forward,
the mean cross-entropy of the tokens, backward, Adam. Each run is a process of its own, ours and the
plain loop's in turn; a step's time is the mean over the epochs after the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import record
import torch
from running import wait_until_idle
from torch.nn import functional

from heliotrope.config import chosen
from heliotrope.data import load
from heliotrope.models import build
from heliotrope.tasks import task_of

_SEED = 7
_BATCH = 32
_RATE = 0.001
_OURS = ("data=shakespeare", "model=gpt", "optimizer=adam", f"optimizer.lr={_RATE}")
_KEYS = (f"batch_size={_BATCH}", "launcher=inline", "workers=1", "cpus_per_worker=1")


def main() -> int:
    """Measure, print the ratio, and store it."""
    parser = record.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        print(_plain(options.epochs))
        return 0
    console, said = record.console(), record.begin()
    pairs: list[tuple[float, float]] = []
    for number in range(options.pairs):
        wait_until_idle(options.patience)
        turns = (_ours, _of_plain) if number % 2 else (_of_plain, _ours)
        seconds = {turn: turn(options.epochs) for turn in turns}
        pairs.append((seconds[_ours], seconds[_of_plain]))
        ours, plain = (1e3 * value for value in pairs[-1])
        console.print(f"{number + 1}: ours {ours:.2f} ms, plain loop {plain:.2f} ms", style="dim")
    ratios = np.array([ours / plain for ours, plain in pairs])
    drawn = np.random.default_rng(_SEED).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    console.print(
        f"a step takes {median(ratios):.3f} times that of the plain loop "
        f"(95 % interval of the median {low:.3f} to {high:.3f})"
    )
    record.finish(said | {"pairs": pairs, "ratio": [median(ratios), low, high]}, options.output)
    return 0


def _plain(epochs: int) -> float:
    torch.set_num_threads(1)
    dataset = load(chosen("data", "shakespeare"), _SEED)
    task = task_of(dataset)
    model = build(chosen("model", "gpt"), task, _SEED).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    whole = dataset.train.take(torch.arange(len(dataset.train)))
    places = torch.arange(whole["next"].shape[1])
    targets = whole["next"].masked_fill(places >= whole["next_length"][:, None], -100)
    seconds, steps = 0.0, 0
    for epoch in range(epochs):
        order = torch.randperm(len(targets))
        started = time.perf_counter()
        for rows in order.split(_BATCH):
            optimizer.zero_grad()
            logits = model(whole["tokens"][rows])
            loss = functional.cross_entropy(logits.flatten(0, 1), targets[rows].flatten())
            loss.backward()
            optimizer.step()
            steps += epoch > 0
        seconds += (time.perf_counter() - started) * (epoch > 0)
    return seconds / steps


def _of_plain(epochs: int) -> float:
    command = [sys.executable, __file__, "--plain", f"--epochs={epochs}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _ours(epochs: int) -> float:
    keys = [f"distributed.{key}" for key in (*_KEYS, f"epochs={epochs}")]
    with tempfile.TemporaryDirectory() as folder:
        keys += [f"distributed.evaluate_every={epochs}", f"hydra.run.dir={folder}/run"]
        command = [sys.executable, "-m", "heliotrope", "distributed", *_OURS, *keys]
        subprocess.run(command, check=True, capture_output=True)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    trained = [e for e in map(json.loads, lines) if e["event"] == "train"][1:]
    return sum(event["timing"]["step_ms"] for event in trained) / len(trained) / 1e3


if __name__ == "__main__":
    sys.exit(main())
