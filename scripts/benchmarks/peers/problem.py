"""What every peer is given, and what it gives back; needs torch and NumPy only.

A problem is a JSON file beside an .npz of arrays: `values` [N, *shape], `targets` int64 [N],
`indices` and `offsets` (client c holds `indices[offsets[c]:offsets[c + 1]]`), and the initial
weights as `weights/<name>`. What the values are, `kind` says: pixels (uint8, of which the inputs
are `values * scale + shift`), columns (float32) or tokens [N, L], with the next ones as targets
[N, L]. A peer prints one JSON object on its last line.
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "CLIP",
    "NOISE",
    "Problem",
    "arguments",
    "build_model",
    "mean_loss",
    "read",
    "report",
    "train_locally",
]

CLIP, NOISE = 10.0, 1e-3
"""Of rounds with privacy: so little noise, in units of `CLIP`, that losses can be compared."""


def build_model(
    spec: Mapping[str, Any], shape: Sequence[int], weights: Mapping[str, Tensor]
) -> nn.Module:
    """Return the model that `spec` describes for inputs of `shape`, with these weights."""
    if spec["name"] == "sequence":
        made = runpy.run_path(str(Path(__file__).with_name("sequences.py")))["sequence"]
        module: nn.Module = made(**{key: spec[key] for key in spec.keys() - {"name"}})
        module.load_state_dict(dict(weights))
        return module
    width = prod(shape)
    layers: list[nn.Module] = []
    if spec["name"] == "cnn":
        channels, size, _ = shape
        for out in spec["channels"]:
            kernel = spec["kernel_size"]
            layers += [nn.Conv2d(channels, out, kernel, padding=kernel // 2), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            channels, size = out, size // 2
        width = channels * size * size
    layers.append(nn.Flatten())
    for hidden in spec["hidden"]:
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    model = nn.Sequential(*layers, nn.Linear(width, spec["classes"]))
    model.load_state_dict(dict(weights))
    return model


@dataclass(frozen=True)
class Problem:
    """One workload: the data, who holds it, the model and how a client trains it."""

    model: Mapping[str, Any]
    clients_per_round: int
    batch_size: int
    local_epochs: int
    lr: float
    seed: int
    kind: str
    scale: float
    shift: float
    values: Tensor
    targets: Tensor
    indices: Tensor
    offsets: Tensor
    weights: Mapping[str, Tensor]

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.offsets) - 1

    @cached_property
    def inputs(self) -> Tensor:
        """What the model takes: float32 [N, *shape], or tokens int64 [N, L]."""
        if self.kind == "tokens":
            return self.values.long()
        return self.values.to(torch.float32).mul(self.scale).add_(self.shift)

    def rows(self, client: int) -> Tensor:
        """Return the examples that `client` holds, int64 [n]."""
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def module(self) -> nn.Module:
        """Return the model, with the initial weights."""
        return build_model(self.model, self.values.shape[1:], self.weights)


@lru_cache(maxsize=1)  # a process that serves many clients reads the data once
def read(path: Path) -> Problem:
    """Read the problem that `path` and the .npz beside it describe."""
    fields = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    weights = {
        name.removeprefix("weights/"): value
        for name, value in arrays.items()
        if name.startswith("weights/")
    }
    names = ("values", "targets", "indices", "offsets")
    return Problem(**fields, **{name: arrays[name] for name in names}, weights=weights)


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [..., C] and targets [...]."""
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def train_locally(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    client: int,
    generator: torch.Generator | None = None,
) -> None:
    """Train `model` as `client` does: an eager loop, as it is written by hand."""
    mine = problem.rows(client)
    for _ in range(problem.local_epochs):
        rows = mine[torch.randperm(len(mine), generator=generator)]
        inputs, targets = problem.inputs[rows], problem.targets[rows]
        for batch in _slices(len(rows), problem.batch_size):
            optimizer.zero_grad(set_to_none=True)
            mean_loss(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(a, b) for a, b in pairwise([*range(0, length, size), length]))


def arguments(description: str | None) -> argparse.Namespace:
    """Parse what the benchmark passes to every peer."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("problem", type=Path, help="the problem's JSON file")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--variant", default="", help="which setting of the peer")
    parser.add_argument("--weights", type=Path, help="where to save the final weights (.npz)")
    return parser.parse_args()


def report(
    options: argparse.Namespace,
    times: list[float],
    weights: Mapping[str, Tensor],
    packages: tuple[str, ...],
    **more: Any,
) -> None:
    """Print the result: `times` are unix seconds, first round begun, then each round's end."""
    if len(times) != options.rounds + 1:
        raise RuntimeError(f"{len(times) - 1} rounds were timed, not {options.rounds}")
    if options.weights is not None:
        np.savez(options.weights, **{k: v.detach().cpu().numpy() for k, v in weights.items()})
    versions = {name: version(name) for name in ("torch", "numpy", *packages)}
    print(json.dumps({"times": times, "printed": time.time(), "versions": versions, **more}))
