"""What the server of a deployment has of the data: the splits that it measures, and counts.

The clients' rows are in their own folders. The server knows how many each has and what they weigh,
as it must to draw cohorts and to take means, and a hash of all of them, for its privacy ledger.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from heliotrope.config import Run
from heliotrope.data import Dataset, Exchange, Partition, Preparation
from heliotrope.errors import DataError
from heliotrope.tasks import task_of

from ..components import Components, components_of
from ..engine.context import assemble
from ..flower.node_data import DAMAGE, read_rows, write_rows

__all__ = ["can_be_apart", "server_components", "write_server_data"]

_FACTS, _COUNTS = "facts.json", "counts.npz"
_SPLITS = ("root", "validation", "test")


def can_be_apart(dataset: Dataset) -> bool:
    """Return whether the server can do without the clients' rows.

    Not where its own are scaled by the clients' of the same group, nor where a preparation that
    was released with noise is charged with the rows that it was fitted to.
    """
    grouped = dataset.preparation.fit == "per_client" and dataset.train.keys is not None
    return not grouped and not dataset.releases


def write_server_data(folder: Path, components: Components, dataset: Dataset) -> None:
    """Write what the server needs of `dataset`, whose clients are those of `components`."""
    fitting, context, root = dataset.fitting, components.context, components.root
    assert fitting is not None
    own = (fitting.train.subset(root), fitting.validation, fitting.test)
    for name, rows in zip(_SPLITS, own, strict=True):
        write_rows(folder / name, rows, {})
    partition = context.population.partition
    held = np.concatenate([root, partition.indices])
    rest = np.setdiff1d(np.arange(len(context.example_weights)), held)
    np.savez(
        folder / _COUNTS,
        offsets=partition.offsets,
        identities=partition.identities,
        # The server's own first, then those of each client, then those that nobody has.
        weights=context.example_weights.numpy()[np.concatenate([held, rest])],
    )
    facts = {
        "exchange": asdict(components.exchange),
        "content": components.content,
        "notes": dataset.notes,
    }
    (folder / _FACTS).write_text(json.dumps(facts))


def server_components(run: Run, folder: Path, preparation: Preparation) -> Components:
    """Return the parts of a deployed federation, without any client's rows.

    Raises `DataError` if `folder` is not what `write_server_data` has written.
    """
    root, validation, test = (preparation.apply(read_rows(folder / name)[1]) for name in _SPLITS)
    try:
        facts = json.loads((folder / _FACTS).read_text())
        exchange = Exchange(**facts["exchange"] | {"told": tuple(facts["exchange"]["told"])})
        with (folder / _COUNTS).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            weights, offsets, identities = (
                file[name] for name in ("weights", "offsets", "identities")
            )
    except DAMAGE as error:
        raise DataError(
            f"{folder} is not the server's data folder: {error!r:.200}. Let heliotrope deploy "
            "write it again."
        ) from error
    dataset = Dataset(
        *(run.data.name, root, validation, test, preparation.info(), preparation),
        notes=tuple(facts["notes"]),
        content=facts["content"],
    )
    splits = {"validation": validation, "test": test}
    central = {name: split for name, split in splits.items() if len(split)}
    own: NDArray[np.int64] = np.arange(len(root))
    clients = Partition(np.arange(offsets[-1]) + len(root), offsets, identities)
    context = assemble(
        *(run, task_of(dataset, run), root, clients, central),
        known_weights=torch.from_numpy(weights),
    )
    return components_of(run, replace(context, content=dataset.content), dataset, exchange, own)
