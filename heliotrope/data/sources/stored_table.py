"""Parquet files of more rows than fit into memory: converted once, then read row by row.

What a row is known by stays in memory: what is to be predicted, and its natural group.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heliotrope.data.columns import Column, Raw, Strings, Values
from heliotrope.data.mapped import MappedArray
from heliotrope.data.preparation import Kind
from heliotrope.data.sources.cells import check_kinds
from heliotrope.data.sources.collect import cache_dir
from heliotrope.data.sources.inference import Roles, check_roles
from heliotrope.data.sources.parquet_files import ParquetFiles
from heliotrope.data.sources.table_conversion import (
    ABOUT,
    CELL,
    KEYS,
    NUMBERS,
    ROWS,
    TARGET,
    Conversion,
    inputs_of,
)
from heliotrope.data.stored import Selection, StoredNumbers, StoredWords
from heliotrope.errors import DataError
from heliotrope.system.durable import sync_file, sync_folder
from heliotrope.system.locks import NoLocksError, lock

__all__ = ["TableSplit", "stored_table"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TableSplit:
    """The rows of a table's split, and what is known of them.

    Parameters
    ----------
    raw
        Its rows.
    kinds
        What its columns hold.
    notes
        What was inferred of training rows, and what was left out.
    content
        A hash of Parquet files; None of others.
    """

    raw: Raw
    kinds: dict[str, Kind]
    notes: list[str]
    content: str | None = None


def stored_table(
    files: ParquetFiles,
    roles: Roles,
    *,
    decimal: str,
    skip_bad: bool,
    kinds: Mapping[str, Kind] | None = None,
) -> TableSplit:
    """Return the rows of files, from the cache, or converted into it.

    Parameters
    ----------
    files
        The files, whose footers have been read.
    roles
        What the columns are for.
    decimal
        What comes before the fraction of a number that is written as text.
    skip_bad
        Leave bad rows out instead of refusing them.
    kinds
        What the columns hold; None to tell it from these rows.

    Raises
    ------
    DataError
        If a column is missing or of another type, a row is bad and `skip_bad` is false, a file
        cannot be decoded, or the cache has no room; names file, row and column.
    """
    if kinds is None:
        check_roles(files.path, files.types, roles)
    else:
        check_kinds(files.path, files.types, kinds, (roles.target,))
    conversion = Conversion(files, roles, decimal, skip_bad, kinds)
    root = cache_dir("tables")
    folder = root / conversion.key
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f"{conversion.key}.lock").open("a+") as file:
            with suppress(NoLocksError):  # then two may convert at once, each for itself
                lock(file, wait=True)
            if not (folder / ABOUT).exists():
                _convert(conversion, folder)
    except OSError as error:
        raise DataError(
            f"{files.path} is to be converted into {folder}, which cannot be written: "
            f"{error.strerror or error}. Make room there, or set the environment variable "
            "XDG_CACHE_HOME to another folder."
        ) from error
    try:
        return _opened(folder, conversion)
    except (OSError, ValueError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder} is damaged ({error}). Remove it: it is made of {files.path} again."
        ) from error


def _convert(conversion: Conversion, folder: Path) -> None:
    """Write `folder`, whole or not at all."""
    import pyarrow as pa

    files = conversion.files
    _log.info("%s: %s rows are converted once into %s", files.path, f"{files.rows:,}", folder)
    lefts = folder.parent.glob(f"{folder.name}.*.part")  # of a process that was killed
    for left in (folder, *lefts):  # a folder that is not whole is of nobody
        shutil.rmtree(left, ignore_errors=True)
    with _beside(folder) as part:
        conversion.write(part)
    pa.default_memory_pool().release_unused()


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Give a folder to be filled, which becomes `folder` at the end unless an error is raised."""
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield part
        for path in part.iterdir():
            sync_file(path)
        sync_folder(part)
        try:
            part.rename(folder)
        except OSError:  # without locks another process may have been faster
            if not (folder / ABOUT).exists():
                raise
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _opened(folder: Path, conversion: Conversion) -> TableSplit:
    """Return a table that has been converted; what it raises for damage names no folder."""
    roles, files = conversion.roles, conversion.files
    about = json.loads((folder / ABOUT).read_text())
    kinds, words, rows = about["kinds"], about["words"], about["rows"]
    of_numbers, of_words = (inputs_of(kinds, kind, roles.target) for kind in ("number", "word"))
    width = len(of_numbers) + len(of_words)
    path, stride = folder / ROWS, width * CELL
    if (size := path.stat().st_size) != rows * stride:
        raise ValueError(f"{path.name} has {size:,} bytes, not {rows * stride:,}")
    selection = Selection(range(rows))
    columns: dict[str, Column] = {}

    def array(dtype: type, first: int, count: int) -> MappedArray:
        shape = (rows, count)
        return MappedArray(path, np.dtype(dtype), shape, first * CELL, (stride, CELL))

    numbered = array(np.float32, 0, len(of_numbers))
    coded = array(np.int32, len(of_numbers), len(of_words))
    target = np.load(folder / TARGET)
    for name, kind in kinds.items():
        if name == roles.target:
            known = kind == "word"
            columns[name] = Strings(target, tuple(words[name])) if known else Values(target)
        elif kind == "number":
            columns[name] = StoredNumbers(numbered, of_numbers.index(name), selection)
        else:
            index = of_words.index(name)
            columns[name] = StoredWords(coded, index, selection, tuple(words[name]))
    keys = None
    if roles.client is not None:
        keys = np.array(words[roles.client])[np.load(folder / KEYS)]
    left_out = folder / NUMBERS
    numbers_of = np.load(left_out) if left_out.exists() else None
    raw = Raw(columns, keys, str(files.path), numbers_of, files.files)
    return TableSplit(raw, kinds, about["notes"], files.content)
