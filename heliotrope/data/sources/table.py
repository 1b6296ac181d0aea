"""A user's own table: what its columns hold is inferred, said, and the same for new rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from heliotrope.data.columns import Raw, Strings, Values
from heliotrope.data.preparation import Categories, Kind, Labels, Numbers, Step, Target, Words
from heliotrope.data.preparation.counts import in_order
from heliotrope.data.sources.cells import convert
from heliotrope.data.sources.inference import (
    Roles,
    cells_of,
    check_roles,
    infer,
    said,
    task_of_kinds,
)
from heliotrope.data.sources.parquet_files import ParquetFiles
from heliotrope.data.sources.stored_table import TableSplit, stored_table
from heliotrope.data.sources.table_files import CsvFormat, Rows, is_parquet, read_parquet, read_rows
from heliotrope.data.sources.unprepared import Files, Unprepared, held_out
from heliotrope.errors import DataError

__all__ = ["table"]


@dataclass(frozen=True)
class _Tables(Files):
    """Files that hold tables, how a .csv file is written, and how much is read into memory."""

    csv_format: CsvFormat
    memory_mib: int

    def training(self, roles: Roles) -> TableSplit:
        """Return the rows to train on, and those to be held out if there is no file of these."""
        rows = self._read(self.path, "data.path")
        if isinstance(rows, ParquetFiles):
            return self._stored(rows, roles, None)
        check_roles(rows.path, rows.types, roles)
        cells = cells_of(rows, roles)
        kinds = infer(rows.path, rows.columns, cells, roles, rows.decimal)
        notes = said(rows.path, len(rows.numbers), kinds, cells, roles)
        raw, bad = self._converted(rows, kinds, roles)
        return TableSplit(raw, kinds, notes + _left_out(bad), rows.content)

    def testing(self, roles: Roles, kinds: Mapping[str, Kind]) -> TableSplit | None:
        """Return the rows to test on, if there is a file of these."""
        if self.test is None:
            return None
        rows = self._read(self.test, "data.test")
        roles = replace(roles, client=roles.client if roles.client in rows.types else None)
        if isinstance(rows, ParquetFiles):
            return self._stored(rows, roles, kinds)
        raw, bad = self._converted(rows, kinds, roles)
        return TableSplit(raw, dict(kinds), _left_out(bad), rows.content)

    def _read(self, path: str, key: str) -> Rows | ParquetFiles:
        """Read a table into memory, or of one that is too large the footers."""
        if not is_parquet(Path(path)):
            return read_rows(
                Path(path), key=key, skip_bad=self.skip_bad, csv_format=self.csv_format
            )
        files = ParquetFiles.of(Path(path), key)
        large = files.size > self.memory_mib << 20
        return files if large else read_parquet(files, self.csv_format.decimal)

    def _converted(
        self, rows: Rows, kinds: Mapping[str, Kind], roles: Roles
    ) -> tuple[Raw, list[str]]:
        return convert(
            rows,
            kinds,
            required=(roles.target,),
            key=roles.client,
            skip_bad=self.skip_bad,
            categories=True,
        )

    def _stored(
        self, files: ParquetFiles, roles: Roles, kinds: Mapping[str, Kind] | None
    ) -> TableSplit:
        if roles.text is not None:
            raise DataError(
                f"{files.path}: its texts (data.text={roles.text}) are read into memory, and the "
                f"table takes {files.size >> 20:,} MiB there. Raise data.memory_mib="
                f"{self.memory_mib} above that, or leave the column out."
            )
        decimal = self.csv_format.decimal
        return stored_table(files, roles, decimal=decimal, skip_bad=self.skip_bad, kinds=kinds)


def table(
    *,
    path: str,
    target: str,
    test: str | None = None,
    test_fraction: float = 0.2,
    bad_rows: str = "refuse",
    delimiter: str = ",",
    encoding: str = "utf-8",
    decimal: str = ".",
    client: str | None = None,
    ignore: Sequence[str] = (),
    categories: Sequence[str] = (),
    text: str | None = None,
    vocabulary: int = 5000,
    max_words: int | None = 200,
    memory_mib: int = 1024,
) -> Unprepared:
    r"""Rows of your own CSV, Parquet or JSONL file, of which a column is to be predicted.

    A column whose values all are numbers is numeric, any other categorical, unless `text` or
    `categories` names it. A target of fractions means regression, any other classification;
    `task=regression` and `task=classification` say otherwise.
    Without a file of test rows, some of each client and target are held out.

    Parameters
    ----------
    path
        The file: .csv, .parquet or .jsonl; or Parquet files of one schema, as a folder or as a
        pattern, such as rows/2026-*.parquet.
    target
        The column to be predicted.
    test
        Test rows, as `path`; null: `test_fraction` is held out, always the same.
    test_fraction
        The share of the training data that is held out for testing, if there is no `test`.
    bad_rows
        Whether a row that cannot be read ends the command (refuse), or is left out and counted
        (skip).
    delimiter
        What separates the cells of a .csv file: one character, or \t for a tab.
    encoding
        Of a .csv file, as Python calls it, such as latin-1.
    decimal
        What comes before the fraction of a number that is written as text: a point or a comma.
    client
        The column of the natural groups; null: there is none.
    ignore
        Columns to be left out.
    categories
        Columns of numbers that stand for categories; the target among them, for classes.
    text
        A column that holds sentences; null: there is none.
    vocabulary
        How many words are known: the most frequent ones.
    max_words
        Words of each text that are read, from its beginning; null: all.
    memory_mib
        MiB that Parquet files may take in memory, 8 bytes a cell; those of more are converted
        once to a file in ~/.cache/heliotrope/tables, from which batches are read.

    Raises
    ------
    DataError
        If a file cannot be read, a key names no column, or a cell does not fit its column; names
        file, row and column.
    """
    csv_format = CsvFormat(delimiter, encoding, decimal)
    files = _Tables(path, test, test_fraction, bad_rows == "skip", csv_format, memory_mib)
    words = None if text is None else Words(vocabulary, max_words, column=text)
    return _unprepared(files, Roles(target, client, text, ignore, categories), words)


def _unprepared(files: _Tables, roles: Roles, words: Words | None) -> Unprepared:
    """Return the columns of both splits, the steps that make fields of them, and what to say."""
    found = files.training(roles)
    train, kinds, notes, contents = found.raw, found.kinds, found.notes, [found.content]
    steps = _steps(train, kinds, roles.target, words)
    if (tested := files.testing(roles, kinds)) is not None:
        test, notes = tested.raw, notes + tested.notes
        contents.append(tested.content)
    else:
        train, test = train.parted(_held_out(train, roles.target, files.test_fraction))
    task, drawn = task_of_kinds(kinds, roles.target), files.test is None
    known = "-".join(content for content in contents if content is not None)
    return Unprepared(train, test, steps, task, tuple(notes), drawn, known or None)


def _left_out(bad: list[str]) -> list[str]:
    return [f"  {len(bad):,} bad rows left out; the first: {bad[0]}"] if bad else []


def _steps(
    train: Raw, kinds: Mapping[str, Kind], target: str, words: Words | None
) -> tuple[Step, ...]:
    def named(kind: Kind) -> tuple[str, ...]:
        return tuple(name for name in kinds if kinds[name] == kind and name != target)

    steps: list[Step] = []
    if named("number"):
        steps.append(Numbers(named("number")))
    if named("word"):
        steps.append(Categories(named("word")))
    if words is not None:
        steps.append(words)
    column = train.columns[target]
    if isinstance(column, Strings):
        return (*steps, Labels(in_order(column.words), target))
    return (*steps, Target(column=target))


def _held_out(
    rows: Raw, target: str, fraction: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    column = rows.columns[target]
    values = column.codes if isinstance(column, Strings) else None
    if isinstance(column, Values):
        values = column.values
    assert values is not None
    keys = [] if rows.keys is None else [rows.keys]
    return held_out(fraction, *keys, values, count=len(rows))
