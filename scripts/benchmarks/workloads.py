"""The workloads that are measured, and the files that describe them to every peer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers.configs import model_config

from heliotrope.config import ModelConfig, chosen
from heliotrope.data import (
    Affine,
    Dataset,
    Dense,
    Examples,
    Info,
    Partition,
    Traits,
    Windows,
    load,
    partition,
)
from heliotrope.models import build
from heliotrope.seeding import numpy_generator
from heliotrope.tasks import Classification, DataFacts, task_of

__all__ = ["SEED", "WORKLOADS", "Workload", "windows", "write"]

SEED = 7

Divide = Callable[[Dataset], tuple[Examples, Partition]]
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
    keys: Mapping[str, Any] = field(default_factory=dict)  # of the dataset


def write(workload: Workload, path: Path) -> None:
    """Write what the peers read (see `peers/problem.py`): `path` and the .npz beside it."""
    dataset = load(chosen("data", workload.dataset, **workload.keys), SEED)
    train, parts = workload.divide(dataset)
    task = task_of(dataset)
    kind, values, targets = _arrays(train, dataset.info)
    if kind == "columns":  # encoded: the model is given numbers alone
        example = {"numeric": torch.zeros(1, values.shape[1]), "label": torch.zeros(1).long()}
        task = Classification(DataFacts(dataset.name, dataset.info, example))
    weights = build(workload.model, task, SEED).state_dict()
    image = train.fields.get("image")
    affine = image.transform if isinstance(image, Dense) else None
    scale, shift = (affine.scale, affine.shift) if isinstance(affine, Affine) else (1.0, 0.0)
    keys = {
        "mlp": ("name", "hidden"),
        "cnn": ("name", "hidden", "channels", "kernel_size"),
        "sequence": ("name", "layer", "units", "size"),
    }
    model = asdict(workload.model)
    problem = {
        "model": {key: model[key] for key in keys[workload.model.name]}
        | {"classes": task.num_outputs},
        "clients_per_round": workload.clients_per_round,
        "batch_size": workload.batch_size,
        "local_epochs": workload.local_epochs,
        "lr": workload.lr,
        "seed": SEED,
        "kind": kind,
        "scale": scale,
        "shift": shift,
    }
    path.write_text(json.dumps(problem))
    np.savez(
        path.with_suffix(".npz"),
        values=values,
        targets=targets,
        indices=parts.indices,
        offsets=parts.offsets,
        **{f"weights/{name}": value.numpy() for name, value in weights.items()},
    )


def _arrays(train: Examples, info: Info) -> tuple[str, NDArray[Any], NDArray[Any]]:
    """Return what the values of a problem are, its values and its targets."""
    image = train.fields.get("image")
    if isinstance(image, Dense):
        label = train.fields["label"]
        assert isinstance(label, Dense)
        return "pixels", image.values.numpy(), label.values.numpy()
    batch = train.take(torch.arange(len(train)))
    if "tokens" in batch:
        return "tokens", batch["tokens"].numpy().astype(np.uint8), batch["next"].numpy()
    encoded = [
        torch.nn.functional.one_hot(column, size)
        for column, size in zip(batch["category"].T, info.categories.values(), strict=True)
    ]
    columns = torch.cat([batch["numeric"], *encoded], dim=1)
    return "columns", columns.numpy(), batch["label"].numpy()


def _speakers(clients: int) -> Divide:
    """Return a division by the speakers who say most, of whom only whole windows count."""

    def divide(dataset: Dataset) -> tuple[Examples, Partition]:
        stream, keys = dataset.train.fields["tokens"], dataset.train.keys
        assert isinstance(stream, Windows)
        assert keys is not None
        whole = np.flatnonzero((stream.lengths == stream.lengths.max()).numpy())
        speakers, sizes = np.unique(keys[whole], return_counts=True)
        most = np.argsort(-sizes, kind="stable")[:clients]
        held = [whole[keys[whole] == speaker] for speaker in speakers[most]]
        rows, offsets = torch.from_numpy(np.concatenate(held)), np.cumsum([0, *map(len, held)])
        return dataset.train.subset(rows), Partition(np.arange(offsets[-1]), offsets)

    return divide


def _iid(clients: int, examples: int | None = None) -> Divide:
    """Return a division into equal, random parts; of each, only the first `examples`."""

    def divide(dataset: Dataset) -> tuple[Examples, Partition]:
        cfg = chosen("federated/partition", "iid", clients=clients)
        parts = partition(cfg, Traits(len(dataset.train)), SEED)
        if examples is None:
            return dataset.train, parts
        indices = np.concatenate([mine[:examples] for mine in parts])
        return dataset.train, Partition(indices, np.arange(clients + 1) * examples)

    return divide


def _ragged(clients: int, smallest: int, largest: int) -> Divide:
    """Return a division where sizes are uniform in a range, examples drawn with replacement.

    Of a dataset that has fewer examples than the clients together.
    """

    def divide(dataset: Dataset) -> tuple[Examples, Partition]:
        generator = numpy_generator(SEED, "benchmark")
        sizes = generator.integers(smallest, largest, size=clients, endpoint=True)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        rows = torch.from_numpy(generator.integers(len(dataset.train), size=offsets[-1]))
        return dataset.train.subset(rows), Partition(np.arange(offsets[-1]), offsets)

    return divide


def windows(clients: int, examples: int) -> Divide:
    """Return a division where client c holds `examples` neighbours, c's windows overlapping.

    For populations that no dataset is large enough for.
    """

    def divide(dataset: Dataset) -> tuple[Examples, Partition]:
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
        model=chosen("model", "mlp", hidden=[200, 200]),
        clients_per_round=10,
        batch_size=10,
    ),
    "B": Workload(
        title="MLP 64-32-10, digits, 1000 clients of 2 to 40, 100 a round, B=8",
        dataset="digits",
        divide=_ragged(1000, 2, 40),
        model=chosen("model", "mlp", hidden=[32]),
        clients_per_round=100,
        batch_size=8,
    ),
    "C": Workload(
        title="FedAvg CNN (1.66 M parameters), Fashion-MNIST, 100 clients of 120, 10 a round, B=10",
        dataset="fashion_mnist",
        divide=_iid(100, examples=120),
        model=chosen("model", "cnn", channels=[32, 64], kernel_size=5, hidden=[512]),
        clients_per_round=10,
        batch_size=10,
    ),
    "E": Workload(
        title="LSTM of 128 units, 80 characters, 100 speakers of Shakespeare, 10 a round, B=10",
        dataset="shakespeare",
        divide=_speakers(100),
        model=model_config("sequence", layer="characters", units=128, size=80),
        clients_per_round=10,
        batch_size=10,
        keys={"length": 80},
    ),
    "F": Workload(
        title="Transformer of 2 layers, width 64, 64 characters, 100 speakers, 10 a round, B=10",
        dataset="shakespeare",
        divide=_speakers(100),
        model=model_config("sequence", layer="decoder", units=64, size=64),
        clients_per_round=10,
        batch_size=10,
        keys={"length": 64},
    ),
    "G": Workload(
        title="Logistic regression of heart disease, 100 clients of 7 or 8, all in a round, B=4",
        dataset="heart",
        divide=_iid(100),
        model=chosen("model", "mlp", hidden=[]),
        clients_per_round=100,
        batch_size=4,
    ),
    **{
        name: Workload(
            title=f"{title}, Fashion-MNIST, 100 clients of 120, 16 a round, B=10",
            dataset="fashion_mnist",
            divide=_iid(100, examples=120),
            model=model_config("sequence", layer=layer, units=32, size=28),
            clients_per_round=16,
            batch_size=10,
        )
        for name, layer, title in (
            ("lstm", "lstm", "LSTM of 32 units over an image's 28 rows"),
            ("gru", "gru", "GRU of 32 units over an image's 28 rows"),
            ("encoder", "encoder", "Transformer encoder of two layers of width 32 over 28 rows"),
        )
    },
    "embedding": Workload(
        title="Embeddings of 64 tokens, 16 wide, digits, 1000 clients of 2 to 40, 32 a round, B=8",
        dataset="digits",
        divide=_ragged(1000, 2, 40),
        model=model_config("sequence", layer="embedding", units=16, size=8),
        clients_per_round=32,
        batch_size=8,
    ),
}
