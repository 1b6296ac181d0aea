"""The conversion of Parquet files into a file of records, from which any row is read by itself.

A batch of shuffled rows cannot be read from Parquet without decoding a whole row group for each
row. So the columns that a model is given are written to a folder once, a record of 4 bytes a cell
for each row, in two passes over the files and in constant memory: the first tells what the columns
hold, the second writes. What is to be predicted, and the natural group of each row, are written
beside them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope.data.columns import Column, Raw, Strings, Values
from heliotrope.data.preparation import Kind
from heliotrope.data.preparation.numbers import numbers
from heliotrope.data.sources.cells import good_rows, raw_of
from heliotrope.data.sources.inference import Cells, Roles, cells_of, different_cells, infer, said
from heliotrope.data.sources.parquet_files import ParquetFiles
from heliotrope.data.sources.table_files import Rows
from heliotrope.errors import DataError

__all__ = ["ABOUT", "CELL", "KEYS", "NUMBERS", "ROWS", "TARGET", "Conversion", "inputs_of"]

ROWS, TARGET, KEYS, NUMBERS = "rows.bin", "target.npy", "keys.npy", "numbers.npy"
"""Files of a folder: the records; of each row the target, the group, and its number if bad rows
have been left out."""
ABOUT = "about.json"
"""The file of what is to be known beside them."""
CELL = 4
"""Bytes of a cell."""

_VERSION = 2  # of these files


@dataclass(frozen=True, eq=False)
class Conversion:
    """Files, and all that their conversion depends on.

    Parameters
    ----------
    files
        The files.
    roles
        What their columns are for; `client` is None if there is no such column.
    decimal, skip_bad
        How cells are read, and whether rows are left out whose cells are bad.
    kinds
        What the columns hold; None for training rows, of which it is inferred.
    """

    files: ParquetFiles
    roles: Roles
    decimal: str
    skip_bad: bool
    kinds: Mapping[str, Kind] | None

    @property
    def key(self) -> str:
        """What the result is called in the cache: 16 hexadecimal digits."""
        roles = {name: _listed(value) for name, value in asdict(self.roles).items()}
        kinds = None if self.kinds is None else dict(self.kinds)
        about = [_VERSION, self.files.stamp, roles, self.decimal, self.skip_bad, kinds]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]

    def blocks(self, names: list[str]) -> Iterator[Rows]:
        """Yield some rows of these columns at a time."""
        for done, columns in self.files.blocks(names):
            count = len(next(iter(columns.values())))
            numbered = list(range(done + 1, done + 1 + count))
            yield Rows(self.files.path, columns, numbered, [], self.decimal, self.files.files)

    def write(self, folder: Path) -> None:
        """Write all files of `folder`, which must be empty; raises `DataError`, or `OSError`."""
        about = _write(self, _cells(self), folder)
        (folder / ABOUT).write_text(json.dumps(about))


def _cells(conversion: Conversion) -> dict[str, Cells]:
    """Return what is known of the cells of all rows: the first pass."""
    roles, kinds = conversion.roles, conversion.kinds
    if kinds is None:
        names = [name for name in conversion.files.types if name not in roles.ignore]
    else:
        names = [name for name, kind in kinds.items() if kind == "word"]
        names += [] if roles.client is None else [roles.client]
    found: dict[str, Cells] = {}
    for block in conversion.blocks(names) if names else ():
        some = cells_of(block, roles) if kinds is None else different_cells(block)
        found = {name: found[name] + each if name in found else each for name, each in some.items()}
    return found


def _write(conversion: Conversion, cells: Mapping[str, Cells], folder: Path) -> dict[str, Any]:
    """Write the rows: the second pass; return what is to be known of them."""
    files, roles = conversion.files, conversion.roles
    kinds, notes = conversion.kinds, []
    if kinds is None:
        kinds = infer(files.path, files.types, cells, roles, conversion.decimal)
        notes = said(files.path, files.rows, kinds, cells, roles)
    writer = _Writer(conversion, kinds, cells)
    if (room := shutil.disk_usage(folder).free) < (size := writer.width * CELL * files.rows):
        raise DataError(
            f"{files.path} is to be converted into {folder.parent}, which has room for {room:,} "
            f"bytes, but {size:,} are needed. Make room there, set the environment variable "
            "XDG_CACHE_HOME to another folder, or leave columns out with data.ignore."
        )
    with (folder / ROWS).open("wb") as file:
        for block in conversion.blocks(writer.names):
            file.write(writer.record(block).data)
    return {**writer.finish(folder), "notes": notes + writer.notes}


class _Writer:
    """Makes records of rows, and keeps what is held in memory."""

    def __init__(
        self, conversion: Conversion, kinds: Mapping[str, Kind], cells: Mapping[str, Cells]
    ) -> None:
        roles = conversion.roles
        self._conversion, self._kinds = conversion, dict(kinds)
        self._needed = (roles.target, *(() if roles.client is None else (roles.client,)))
        self._inputs = {kind: inputs_of(kinds, kind, roles.target) for kind in ("number", "word")}
        self.names = list(dict.fromkeys([*kinds, *self._needed]))
        """The columns that are read."""
        self.width = sum(map(len, self._inputs.values()))
        """Cells of a record."""
        self._words = {
            name: cells[name].words.words
            for name in self.names
            if kinds.get(name) == "word" or name == roles.client
        }
        self._codes = {
            name: {word: code for code, word in enumerate(words)}
            for name, words in self._words.items()
        }
        self._target: list[NDArray[Any]] = []
        self._keys: list[NDArray[np.int32]] = []
        self._numbers: list[NDArray[np.int64]] = []
        self._bad, self._first_bad = 0, ""

    def record(self, block: Rows) -> NDArray[np.int32]:
        """Return the records of these rows that are good, [R, width]; numbers by their bits."""
        skip_bad = self._conversion.skip_bad
        good = good_rows(block, self._kinds, self._needed, skip_bad=skip_bad, categories=True)
        if good.bad:
            self._first_bad = self._first_bad or good.bad[0]
            self._bad += len(good.bad)
        raw = raw_of(good, self._kinds, None)
        of_numbers, of_words = self._inputs["number"], self._inputs["word"]
        record = np.empty((len(raw), self.width), np.int32)
        record[:, : len(of_numbers)] = numbers(raw, of_numbers).view(np.int32)
        for place, name in enumerate(of_words, start=len(of_numbers)):
            record[:, place] = self._known(name, raw.columns[name])
        self._keep(good, raw)
        return record

    def _keep(self, rows: Rows, raw: Raw) -> None:
        target, client = self._conversion.roles.target, self._conversion.roles.client
        column = raw.columns[target]
        kept = column.values if isinstance(column, Values) else self._known(target, column)
        self._target.append(kept)
        if client is not None:
            only = raw_of(rows, {client: "word"}, None)
            self._keys.append(self._known(client, only.columns[client]))
        assert raw.numbers is not None
        self._numbers.append(raw.numbers)

    def _known(self, name: str, column: Column) -> NDArray[np.int32]:
        """Return the codes among all words of a column, whose own words are those of a block."""
        assert isinstance(column, Strings)
        table = [*(self._codes[name][word] for word in column.words), -1]
        return np.array(table, np.int32)[column.codes]

    @property
    def notes(self) -> list[str]:
        """What is to be said of bad rows."""
        if not self._bad:
            return []
        return [f"  {self._bad:,} bad rows left out; the first: {self._first_bad}"]

    def finish(self, folder: Path) -> dict[str, Any]:
        """Write what is held in memory; return what is to be known beside it."""
        rows = sum(map(len, self._numbers))
        if not rows:
            path = self._conversion.files.path
            raise DataError(f"{path} has no good row. The first: {self._first_bad}.")
        np.save(folder / TARGET, self._targets())
        if self._keys:
            np.save(folder / KEYS, np.concatenate(self._keys))
        if self._bad:
            np.save(folder / NUMBERS, np.concatenate(self._numbers))
        return {"rows": rows, "kinds": self._kinds, "words": self._words}

    def _targets(self) -> NDArray[Any]:
        """Return what is to be predicted; of classes, keep those that a good row has."""
        name, found = self._conversion.roles.target, np.concatenate(self._target)
        if name in self._words:
            used, places = np.unique(found, return_inverse=True)
            words, found = self._words[name], places.astype(np.int32)
            self._words[name] = tuple(words[code] for code in used.tolist())
        return found


def inputs_of(kinds: Mapping[str, Kind], kind: Kind, target: str) -> tuple[str, ...]:
    """Return the columns of one kind that a model is given, in their order in a record."""
    return tuple(name for name in kinds if kinds[name] == kind and name != target)


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else list(value)
