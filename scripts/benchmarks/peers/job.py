"""What every data-parallel peer is given, and what it gives back; needs torch and NumPy only.

A job is a JSON file beside an .npz of arrays: `inputs`, `targets`, `test_inputs`, `test_targets`
and the initial weights as `weights/<name>`. A peer prints one JSON object on its last line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from problem import build_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["Job", "Stopwatch", "arguments", "read", "report"]


@dataclass(frozen=True)
class Job:
    """One data-parallel training: Adam on a global batch, a checkpoint after every epoch."""

    model: Mapping[str, Any]
    epochs: int
    batch_size: int
    lr: float
    seed: int
    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    weights: Mapping[str, Tensor]

    def module(self) -> nn.Sequential:
        """Return the model, with the initial weights."""
        return build_model(self.model, self.inputs.shape[1:], self.weights)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of every peer."""
        return torch.optim.Adam(model.parameters(), lr=self.lr)

    def batches(self, epoch: int, rank: int, ranks: int) -> Iterator[Tensor]:
        """Yield the rows of each of a rank's steps: its part of every global batch."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(self.targets), generator=generator)
        for whole in order.split(self.batch_size):
            first, end = (len(whole) * edge // ranks for edge in (rank, rank + 1))
            yield whole[first:end]

    def correct(self, model: nn.Module, rank: int = 0, ranks: int = 1) -> int:
        """Return how many test examples of a rank's part the model gets right."""
        first, end = (len(self.test_targets) * edge // ranks for edge in (rank, rank + 1))
        right = 0
        model.eval()
        with torch.inference_mode():
            for rows in torch.arange(first, end).split(1024):
                predicted = model(self.test_inputs[rows]).argmax(dim=1)
                right += int((predicted == self.test_targets[rows]).sum())
        model.train()
        return right

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor
    ) -> None:
        """Take one step on a batch."""
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()


class Stopwatch:
    """Notes how long each step takes, from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def start(self) -> None:
        """Begin an epoch."""
        self._last = time.perf_counter()

    def lap(self) -> None:
        """End a step."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def read(path: Path) -> Job:
    """Read the job that `path` and the .npz beside it describe."""
    fields = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    prefix = "weights/"
    weights = {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
    names = ("inputs", "targets", "test_inputs", "test_targets")
    return Job(**fields, **{name: arrays[name] for name in names}, weights=weights)


def arguments(description: str | None) -> argparse.Namespace:
    """Parse what the benchmark passes to every peer."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("job", type=Path, help="the job's JSON file")
    parser.add_argument("--directory", type=Path, required=True, help="for checkpoints")
    parser.add_argument("--variant", default="", help="which setting of the peer")
    return parser.parse_args()


def report(steps: list[float], accuracy: float, packages: tuple[str, ...]) -> None:
    """Print the result: seconds of each step, and the accuracy on the test split."""
    versions = {name: version(name) for name in ("torch", "numpy", *packages)}
    print(json.dumps({"steps": steps, "accuracy": accuracy, "versions": versions}))
