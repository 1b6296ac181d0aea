"""A user's own table: what its columns hold is inferred, said, and the same for new rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from heliotrope.data.columns import Raw, Strings, Values
from heliotrope.data.preparation import Categories, Kind, Labels, Numbers, Step, Target, Words
from heliotrope.data.preparation.counts import in_order
from heliotrope.data.sources.cells import (
    as_numbers,
    as_words,
    convert,
    other_decimal,
    present,
    refuse_types,
    require,
)
from heliotrope.data.sources.table_files import CsvFormat, Rows, read_rows
from heliotrope.data.sources.unprepared import Files, Unprepared, held_out
from heliotrope.errors import DataError
from heliotrope.shell import typed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["table"]

_MOST_WORDS = 1000  # different values of a column of categories
_FEW_ROWS = 20  # of which any number of different values may be
_INDEX = re.compile(r"|__index_level_\d+__")  # what pandas and R call the numbers of rows


@dataclass(frozen=True)
class _Tables(Files):
    """Files that hold tables, and how a .csv file is written."""

    csv_format: CsvFormat

    def training(self) -> Rows:
        """Read the rows to train on, and those to be held out if there is no file of these."""
        return self._read(self.path, "data.path")

    def testing(self) -> Rows | None:
        """Read the file of test rows, if there is one."""
        return None if self.test is None else self._read(self.test, "data.test")

    def _read(self, path: str, key: str) -> Rows:
        return read_rows(Path(path), key=key, skip_bad=self.skip_bad, csv_format=self.csv_format)


@dataclass(frozen=True)
class _Roles:
    """What columns are for, as the configuration names them."""

    target: str
    client: str | None
    text: str | None
    ignore: Sequence[str]
    categories: Sequence[str]


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

    Raises
    ------
    DataError
        If a file cannot be read, a key names no column, or a cell does not fit its column; names
        file, row and column.
    """
    csv_format = CsvFormat(delimiter, encoding, decimal)
    files = _Tables(path, test, test_fraction, bad_rows == "skip", csv_format)
    words = None if text is None else Words(vocabulary, max_words, column=text)
    return _unprepared(files, _Roles(target, client, text, ignore, categories), words)


def _unprepared(files: _Tables, roles: _Roles, words: Words | None) -> Unprepared:
    """Return the columns of both splits, the steps that make fields of them, and what to say."""
    rows = files.training()
    kinds, notes = _infer(rows, roles)
    converted = partial(
        convert, kinds=kinds, required=(roles.target,), skip_bad=files.skip_bad, categories=True
    )
    train, bad = converted(rows, key=roles.client)
    notes += _left_out(bad)
    steps = _steps(train, kinds, roles.target, words)
    if (rows_to_test := files.testing()) is not None:
        key = roles.client if roles.client in rows_to_test.columns else None
        test, bad = converted(rows_to_test, key=key)
        notes += _left_out(bad)
    else:
        mask = _held_out(train, roles.target, files.test_fraction)
        train, test = train.parted(mask)
    return Unprepared(train, test, steps, _task(kinds, roles.target), tuple(notes))


def _infer(rows: Rows, roles: _Roles) -> tuple[dict[str, Kind], list[str]]:
    """Return what each column holds that a model is given, and what to say of it."""
    for key, names in (
        ("data.target", [roles.target]),
        ("data.client", [roles.client] if roles.client is not None else []),
        ("data.text", [roles.text] if roles.text is not None else []),
        ("data.ignore", roles.ignore),
        ("data.categories", roles.categories),
    ):
        for name in names:
            require(rows, key, name)
    refuse_types(rows, [name for name in rows.columns if name not in roles.ignore])
    kinds: dict[str, Kind] = {}
    left = []
    for name, array in rows.columns.items():
        if name in roles.ignore or name == roles.client:
            continue
        if name == roles.target:
            is_class = name in roles.categories or _is_class(array, rows.decimal)
            kinds[name] = "word" if is_class else "number"
        elif name == roles.text:
            kinds[name] = "text"
        elif not present(array).any() or _INDEX.fullmatch(name):
            left.append(name)
        elif name not in roles.categories and _is_number(array, rows.decimal):
            kinds[name] = "number"
        else:
            kinds[name] = "word"
        if kinds.get(name) == "word" and name not in roles.categories:
            _refuse_other_decimal(rows, name)
        if kinds.get(name) == "word" and name != roles.target:
            _refuse_many_words(rows, name)
    if set(kinds) == {roles.target}:
        raise DataError(f"{rows.path}: beside data.target={roles.target} no column is left.")
    return kinds, _said(rows, kinds, roles, left)


def _is_number(array: pa.Array, decimal: str) -> bool:
    """Return whether most values are numbers: those that are not are mistakes then."""
    return 2 * len(as_numbers(array, decimal)[1]) < int(present(array).sum())


def _is_class(array: pa.Array, decimal: str) -> bool:
    """Return whether a target is a class: a word, or a whole number written as one."""
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_floating(array.type):
        return False
    if not pa.types.is_string(array.type) or not _is_number(array, decimal):
        return True
    whole = compute.match_substring_regex(array, r"^\s*[+-]?\d+\s*$")
    return bool(compute.all(whole).as_py())


def _refuse_other_decimal(rows: Rows, name: str) -> None:
    """Refuse words that are numbers if fractions are written otherwise, such as 1,5 for 1.5."""
    array, other = rows.columns[name], other_decimal(rows)
    if _is_number(array, rows.decimal) or not _is_number(array, other):
        return
    wrong = set(as_numbers(array, other)[1])
    row = next(row for row in as_numbers(array, rows.decimal)[1] if row not in wrong)
    mark = {",": "comma", ".": "point"}[other]
    raise DataError(
        f"{rows.where(row)}, column {name}: '{array[row]}' is a number if its "
        f"{mark} comes before a fraction. Then set {typed('data.decimal', other)}. Remove it if it "
        f"groups digits, or, if the column holds categories, set data.categories=[{name}]."
    )


def _refuse_many_words(rows: Rows, name: str) -> None:
    """Refuse names, sentences and the like as categories: each value would be one of its own."""
    different, filled = (
        len(as_words(rows.columns[name]).words),
        int(present(rows.columns[name]).sum()),
    )
    if different > _MOST_WORDS or (filled >= _FEW_ROWS and 2 * different > filled):
        raise DataError(
            f"{rows.path}, column {name}: {filled:,} rows have {different:,} different words, too "
            f"many for categories. Leave the column out with data.ignore=[{name}], or, if it holds "
            f"sentences, set data.text={name}."
        )


def _said(rows: Rows, kinds: Mapping[str, Kind], roles: _Roles, left: list[str]) -> list[str]:
    """Return lines that tell what was inferred."""
    inputs = {name: kind for name, kind in kinds.items() if name != roles.target}
    lines = [f"{rows.path}: {len(rows.numbers):,} rows"]
    for kind, title in (("number", "numbers"), ("word", "categories"), ("text", "text")):
        names = [
            f"{name} ({len(as_words(rows.columns[name]).words)})" if kind == "word" else name
            for name in inputs
            if inputs[name] == kind
        ]
        if names:
            lines.append(f"  {title}: {', '.join(names)}")
    lines.append(f"  target: {roles.target} ({_task(kinds, roles.target)})")
    if roles.client is not None:
        lines.append(
            f"  clients: {roles.client} ({len(as_words(rows.columns[roles.client]).words)})"
        )
    if left:
        named = [name or "''" for name in left]
        lines.append(f"  empty or without a name, left out: {', '.join(named)}")
    return lines


def _left_out(bad: list[str]) -> list[str]:
    return [f"  {len(bad):,} bad rows left out; the first: {bad[0]}"] if bad else []


def _task(kinds: Mapping[str, Kind], target: str) -> str:
    return "classification" if kinds[target] == "word" else "regression"


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
