"""The workloads that are measured, and the files that describe them to every peer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from heliotrope.config import CnnConfig, DataConfig, MlpConfig, ModelConfig, PartitionConfig
from heliotrope.data import Dataset, Partition, Split, load, partition
from heliotrope.models import build
from heliotrope.seeding import numpy_generator
from heliotrope.tasks import task_of

__all__ = ["SEED", "WORKLOADS", "Workload", "windows", "write"]

SEED = 7

Divide = Callable[[Dataset], tuple[Split, Partition]]
"""From a dataset to a pool of examples and which of them each client holds."""


@dataclass(frozen=True)
class Workload:
    """A model, a round's shape, and the function that makes data and clients of a dataset."""

    title: str
    dataset: str
    divide: Divide
    model: ModelConfig
    clients_per_round: int
    batch_size: int
    local_epochs: int = 1
    lr: float = 0.1


def write(workload: Workload, path: Path) -> None:
    """Write what the peers read (see `peers/problem.py`): `path` and the .npz beside it."""
    dataset = load(DataConfig(name=workload.dataset), SEED)
    train, parts = workload.divide(dataset)
    task = task_of(dataset)
    weights = build(workload.model, task, SEED).state_dict()
    keys = {"mlp": ("name", "hidden"), "cnn": ("name", "hidden", "channels", "kernel_size")}
    model = asdict(workload.model)
    problem = {
        "model": {key: model[key] for key in keys[workload.model.name]}
        | {"classes": task.num_outputs},
        "clients_per_round": workload.clients_per_round,
        "batch_size": workload.batch_size,
        "local_epochs": workload.local_epochs,
        "lr": workload.lr,
        "seed": SEED,
    }
    path.write_text(json.dumps(problem))
    np.savez(
        path.with_suffix(".npz"),
        inputs=train.inputs.numpy(),
        targets=train.targets.numpy(),
        indices=parts.indices,
        offsets=parts.offsets,
        **{f"weights/{name}": value.numpy() for name, value in weights.items()},
    )


def _iid(clients: int, examples: int | None = None) -> Divide:
    """Return a division into equal, random parts; of each, only the first `examples`."""

    def divide(dataset: Dataset) -> tuple[Split, Partition]:
        targets = dataset.train.targets.numpy()
        parts = partition(PartitionConfig(name="iid", clients=clients), targets, None, SEED)
        if examples is None:
            return dataset.train, parts
        indices = np.concatenate([mine[:examples] for mine in parts])
        return dataset.train, Partition(indices, np.arange(clients + 1) * examples)

    return divide


def _ragged(clients: int, smallest: int, largest: int) -> Divide:
    """Return a division where sizes are uniform in a range, examples drawn with replacement.

    Of a dataset that has fewer examples than the clients together.
    """

    def divide(dataset: Dataset) -> tuple[Split, Partition]:
        generator = numpy_generator(SEED, "benchmark")
        sizes = generator.integers(smallest, largest, size=clients, endpoint=True)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        rows = torch.from_numpy(generator.integers(len(dataset.train), size=offsets[-1]))
        pool = Split(dataset.train.inputs[rows], dataset.train.targets[rows])
        return pool, Partition(np.arange(offsets[-1]), offsets)

    return divide


def windows(clients: int, examples: int) -> Divide:
    """Return a division where client c holds `examples` neighbours, c's windows overlapping.

    For populations that no dataset is large enough for.
    """

    def divide(dataset: Dataset) -> tuple[Split, Partition]:
        last = len(dataset.train) - examples
        starts = np.arange(clients, dtype=np.int64) * examples % (last + 1)
        indices = (starts[:, None] + np.arange(examples)).reshape(-1)
        return dataset.train, Partition(indices, np.arange(clients + 1) * examples)

    return divide


WORKLOADS = {
    "A": Workload(
        title="FedAvg 2NN (784-200-200-10), Fashion-MNIST, 100 clients of 600, 10 a round, B=10",
        dataset="fashion_mnist",
        divide=_iid(100),
        model=MlpConfig(name="mlp", hidden=[200, 200]),
        clients_per_round=10,
        batch_size=10,
    ),
    "B": Workload(
        title="MLP 64-32-10, digits, 1000 clients of 2 to 40, 100 a round, B=8",
        dataset="digits",
        divide=_ragged(1000, 2, 40),
        model=MlpConfig(name="mlp", hidden=[32]),
        clients_per_round=100,
        batch_size=8,
    ),
    "C": Workload(
        title="FedAvg CNN (1.66 M parameters), Fashion-MNIST, 100 clients of 120, 10 a round, B=10",
        dataset="fashion_mnist",
        divide=_iid(100, examples=120),
        model=CnnConfig(name="cnn", channels=[32, 64], kernel_size=5, hidden=[512]),
        clients_per_round=10,
        batch_size=10,
    ),
}
