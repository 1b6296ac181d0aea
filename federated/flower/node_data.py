"""A node's data folder: the training rows of one client, and nothing of any other.

`rows.npz` holds the columns as arrays, read without pickle, and `rows.json` the rest: texts, and
who the client is. The rows are as their source has them; the preparation comes with the app, as
fitted by all clients together.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from heliotrope.config import from_yaml
from heliotrope.data import Dataset, Partition
from heliotrope.data.columns import Column, Pieces, Raw, Strings, Texts, Values
from heliotrope.data.preparation import from_json
from heliotrope.errors import DataError
from heliotrope.system.durable import write_whole
from heliotrope.tasks import task_of

from ..engine.context import TrainingContext, assemble
from ..fractions import fractions_rounded_down

__all__ = [
    "DAMAGE",
    "FOLDER",
    "NodeData",
    "node_context",
    "read_rows",
    "write_node_data",
    "write_rows",
]

FOLDER = "data-folder"
"""In a node's config, the folder of its own rows."""

DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
"""What reading a file raises that is missing, cut off or of another kind."""

_ARRAYS, _REST = "rows.npz", "rows.json"
_MEND = "Let heliotrope deploy write the folder again."


@dataclass(frozen=True)
class NodeData:
    """Who the client of a node is.

    Parameters
    ----------
    client
        Its number, by which the server draws it.
    identity
        Who it is in seeded draws: see `Partition.identities`.
    clients
        How many clients take part in training.
    """

    client: int
    identity: int
    clients: int


def write_node_data(folder: Path, who: NodeData, rows: Raw) -> None:
    """Write the training rows of one client, unless the folder has them.

    Raises `DataError` if the folder has other rows, or if these are items of a user's own dataset,
    which are read on demand.
    """
    write_rows(folder, rows, {"who": asdict(who)})


def write_rows(folder: Path, rows: Raw, facts: Mapping[str, Any]) -> None:
    """Write rows, and facts that JSON has; raises `DataError` as `write_node_data`."""
    arrays: dict[str, Any] = {}
    columns = {name: _described(name, column, arrays) for name, column in rows.columns.items()}
    rest = json.dumps({**facts, "origin": rows.origin, "columns": columns})
    if (folder / _REST).exists():  # written last
        if not _are_in(folder, rest, arrays):
            raise DataError(
                f"{folder} holds other rows than these settings give it: the data, the seed or "
                "the partition was another, or a file is damaged. Set them as they were, or "
                "choose another output."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / _ARRAYS, **arrays)
    write_whole(folder / _REST, rest.encode())


def _are_in(folder: Path, rest: str, arrays: Mapping[str, Any]) -> bool:
    """Return whether a folder holds exactly this."""
    try:
        with (folder / _ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as there:
            same = {*there.files} == {*arrays} and all(
                there[name].dtype == values.dtype and there[name].tobytes() == values.tobytes()
                for name, values in arrays.items()
            )
        return same and (folder / _REST).read_text() == rest
    except DAMAGE:
        return False


def _described(name: str, column: Column, arrays: dict[str, Any]) -> dict[str, Any]:
    """Return what JSON holds of a column, and put the others of its values into `arrays`."""
    match column:
        case Values() if not column.values.dtype.hasobject:
            arrays[f"values/{name}"] = column.values
            return {"kind": "values"}
        case Strings():
            # The words of other clients' rows stay with them.
            used, codes = np.unique(column.codes[column.codes >= 0], return_inverse=True)
            arrays[f"codes/{name}"] = own = column.codes.copy()
            own[own >= 0] = codes
            return {"kind": "strings", "words": [column.words[code] for code in used]}
        case Texts():
            return {"kind": "texts", "texts": list(column.texts)}
        case Pieces():
            # Each with the one character that follows it: its neighbours may be another client's.
            pairs = zip(column.starts.tolist(), column.lengths.tolist(), strict=True)
            parts = [column.stream[start : start + length + 1] for start, length in pairs]
            arrays[f"stream/{name}"] = np.concatenate(parts)
            arrays[f"lengths/{name}"] = column.lengths
            return {"kind": "pieces"}
    raise DataError(
        f"column {name} holds objects, or is read from a plug-in's dataset on demand, which cannot "
        "be put into a node's folder. Use data in files or arrays for a deployment."
    )


def _column(name: str, described: Mapping[str, Any], arrays: Mapping[str, Any]) -> Column:
    match described["kind"]:
        case "values":
            return Values(arrays[f"values/{name}"])
        case "strings":
            return Strings(arrays[f"codes/{name}"], tuple(described["words"]))
        case "texts":
            return Texts(described["texts"])
        case "pieces":
            lengths = arrays[f"lengths/{name}"]
            starts = np.cumsum(lengths + 1) - (lengths + 1)
            return Pieces(arrays[f"stream/{name}"], starts, lengths)
    raise ValueError(f"a column of the kind {described['kind']}")


def read_rows(folder: Path) -> tuple[dict[str, Any], Raw]:
    """Return the facts and the rows of a folder; `DataError` if `write_rows` did not write it."""
    try:
        rest = json.loads((folder / _REST).read_text())
        with (folder / _ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            columns = {n: _column(n, each, arrays) for n, each in rest.pop("columns").items()}
        return rest, Raw(columns, origin=rest.pop("origin"))
    except DAMAGE as error:
        raise DataError(f"{folder} holds no rows: {error!r:.200}. {_MEND}") from error


def _read(folder: Path) -> tuple[NodeData, Raw]:
    try:
        facts, rows = read_rows(folder)
        return NodeData(**facts["who"]), rows
    except (DataError, KeyError, TypeError) as error:
        raise DataError(
            f"{FOLDER}={folder} of this node's config holds no rows of a client: {error!r:.200}. "
            f"{_MEND}"
        ) from error


@lru_cache(maxsize=1)  # a process serves many messages of one run
def node_context(run_text: str, preparation: str, folder: Path) -> tuple[TrainingContext, NodeData]:
    """Return what the client of a node trains with: itself as the only client, number 0.

    Parameters
    ----------
    run_text
        The resolved configuration of the run.
    preparation
        How rows are prepared: the JSON of `Preparation.to_json`.
    folder
        That `write_node_data` has written.

    Raises
    ------
    DataError
        If the folder holds no rows of a client, or rows that the preparation does not fit.
    """
    run = from_yaml(run_text)
    who, rows = _read(folder)
    prepared = from_json(json.loads(preparation))
    everyone = np.zeros(len(rows), dtype=np.int64)
    train = prepared.apply(rows, everyone if prepared.fit == "per_client" else None)
    none = train.subset(slice(0, 0))
    dataset = Dataset(run.data.name, train, none, none, prepared.info(), prepared)
    cfg = run.federated
    cfg.clients_per_round = 1  # of the one client that is here
    if not fractions_rounded_down(cfg.holdout_fraction, np.array([len(rows)])).any():
        cfg.holdout_fraction = 0.0  # of too few rows, none are held out
    partition = Partition(
        np.arange(len(rows)), np.array([0, len(rows)]), np.array([who.identity], dtype=np.int64)
    )
    return assemble(run, task_of(dataset, run), train, partition), who
