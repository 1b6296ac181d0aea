"""What the columns of a table hold: told from counts of their cells, which add over blocks of rows.

So a table that is read in blocks is understood as one that is in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from heliotrope.data.columns import Strings
from heliotrope.data.preparation import Kind
from heliotrope.data.sources.cells import (
    as_numbers,
    as_words,
    other_decimal,
    present,
    refuse_types,
    require,
)
from heliotrope.data.sources.table_files import Rows
from heliotrope.errors import DataError
from heliotrope.shell import typed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Cells",
    "Roles",
    "cells_of",
    "check_roles",
    "different_cells",
    "infer",
    "said",
    "task_of_kinds",
]

_MOST_WORDS = 1000  # different values of a column of categories
_FEW_ROWS = 20  # of which any number of different values may be
_INDEX = re.compile(r"|__index_level_\d+__")  # what pandas and R call the numbers of rows
_WHOLE = r"^\s*[+-]?\d+\s*$"


@dataclass(frozen=True)
class Roles:
    """What columns are for, as the configuration names them."""

    target: str
    client: str | None
    text: str | None
    ignore: Sequence[str]
    categories: Sequence[str]

    def words(self, name: str, kind: pa.DataType) -> bool:
        """Return whether a column of this type may have any number of different words."""
        import pyarrow as pa

        classes = name == self.target and not pa.types.is_floating(kind)
        return classes or name in self.categories or name == self.client


@dataclass(frozen=True, eq=False)
class Cells:
    """What is known of the cells of a column, of some rows: a value with `+`.

    Parameters
    ----------
    kind
        Their Arrow type.
    filled
        How many are not missing.
    wrong, wrong_otherwise
        How many of these are no numbers, and with the other decimal mark are none.
    otherwise
        Where the first is that only the other decimal mark makes a number, and what it holds.
    whole
        Whether all texts are whole numbers, written as such.
    different
        The different ones; None if nobody asks, or if they are too many for categories.
    most
        How many different ones are kept.
    """

    kind: pa.DataType
    filled: int
    wrong: int
    wrong_otherwise: int
    otherwise: tuple[str, str] | None
    whole: bool
    different: pa.Array | None
    most: int | None

    @property
    def is_number(self) -> bool:
        """Whether most are numbers: those that are not are mistakes then."""
        return 2 * self.wrong < self.filled

    @property
    def is_number_otherwise(self) -> bool:
        """Whether most are numbers with the other decimal mark."""
        return 2 * self.wrong_otherwise < self.filled

    @property
    def is_class(self) -> bool:
        """Whether targets are classes: words, or whole numbers written as such."""
        import pyarrow as pa

        if pa.types.is_floating(self.kind):
            return False
        return not pa.types.is_string(self.kind) or not self.is_number or self.whole

    @property
    def words(self) -> Strings:
        """The different words, each once; there must be some that are kept."""
        assert self.different is not None
        return as_words(self.different)

    def __add__(self, other: Cells) -> Cells:
        import pyarrow as pa

        different = None
        if self.different is not None and other.different is not None:
            different = pa.concat_arrays([self.different, other.different]).unique()
        return Cells(
            self.kind,
            self.filled + other.filled,
            self.wrong + other.wrong,
            self.wrong_otherwise + other.wrong_otherwise,
            self.otherwise or other.otherwise,
            self.whole and other.whole,
            _at_most(different, self.most),
            self.most,
        )


def cells_of(rows: Rows, roles: Roles) -> dict[str, Cells]:
    """Return what is known of the columns of these rows, but for those that are ignored."""
    return {
        name: _cells(rows, name, roles)
        for name in rows.columns
        if name not in roles.ignore and name != roles.text
    }


def _cells(rows: Rows, name: str, roles: Roles) -> Cells:
    import pyarrow as pa
    from pyarrow import compute

    array = rows.columns[name]
    numbers, wrong = as_numbers(array, rows.decimal)
    wrong_otherwise = wrong
    otherwise, whole = None, False
    if pa.types.is_string(array.type):
        wrong_otherwise = as_numbers(array, other_decimal(rows))[1]
        both = set(wrong_otherwise)
        first = next((row for row in wrong if row not in both), None)
        if first is not None:
            otherwise = rows.where(first), str(array[first])
        whole = bool(compute.all(compute.match_substring_regex(array, _WHOLE)).as_py() is not False)
    words = roles.words(name, array.type)
    most = None if words else _MOST_WORDS
    number = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    different = _different(array) if words or not number else None
    missing = int(np.isnan(numbers).sum()) - len(wrong) if number else int((~present(array)).sum())
    return Cells(
        array.type,
        len(array) - missing,
        len(wrong),
        len(wrong_otherwise),
        otherwise,
        whole,
        _at_most(different, most),
        most,
    )


def different_cells(rows: Rows) -> dict[str, Cells]:
    """Return the different cells of each column, any number of them, and nothing else of it."""
    return {
        name: Cells(array.type, 0, 0, 0, None, False, _different(array), None)
        for name, array in rows.columns.items()
    }


def _different(array: pa.Array) -> pa.Array:
    import pyarrow as pa
    from pyarrow import compute

    some = compute.utf8_trim_whitespace(array) if pa.types.is_string(array.type) else array
    return some.filter(pa.array(present(array))).unique()


def _at_most(different: pa.Array | None, most: int | None) -> pa.Array | None:
    """Return the different cells, or None if they are more than `most`."""
    if different is None or most is None or len(different) <= most:
        return different
    return None


def check_roles(path: Path, types: Mapping[str, pa.DataType], roles: Roles) -> None:
    """Raise `DataError` if a role names no column, or a column holds what no model takes."""
    for key, names in (
        ("data.target", [roles.target]),
        ("data.client", [roles.client] if roles.client is not None else []),
        ("data.text", [roles.text] if roles.text is not None else []),
        ("data.ignore", roles.ignore),
        ("data.categories", roles.categories),
    ):
        for name in names:
            require(path, types, key, name)
    refuse_types(path, types, [name for name in types if name not in roles.ignore])


def infer(
    path: Path, names: Iterable[str], cells: Mapping[str, Cells], roles: Roles, decimal: str
) -> dict[str, Kind]:
    """Return what each column holds that a model is given.

    `names` are those of all columns, and `cells` what `cells_of` tells of them, whose numbers had
    `decimal` before their fractions. Raises `DataError` naming a column whose words are too many
    for categories, or numbers that are written otherwise.
    """
    kinds: dict[str, Kind] = {}
    for name in names:
        if name in roles.ignore or name == roles.client:
            continue
        if name == roles.text:
            kinds[name] = "text"
            continue
        found = cells[name]
        if name == roles.target:
            is_class = name in roles.categories or found.is_class
            kinds[name] = "word" if is_class else "number"
        elif not found.filled or _INDEX.fullmatch(name):
            continue
        elif name not in roles.categories and found.is_number:
            kinds[name] = "number"
        else:
            kinds[name] = "word"
        if kinds[name] == "word" and name not in roles.categories:
            _refuse_other_decimal(name, found, decimal)
        if kinds[name] == "word" and name != roles.target:
            _refuse_many_words(path, name, found)
    if set(kinds) == {roles.target}:
        raise DataError(f"{path}: beside data.target={roles.target} no column is left.")
    return kinds


def _refuse_other_decimal(name: str, found: Cells, decimal: str) -> None:
    """Refuse words that are numbers if fractions are written otherwise, such as 1,5 for 1.5."""
    if found.is_number or not found.is_number_otherwise or found.otherwise is None:
        return
    where, cell = found.otherwise
    other = "," if decimal == "." else "."
    mark = {",": "comma", ".": "point"}[other]
    raise DataError(
        f"{where}, column {name}: '{cell}' is a number if its {mark} comes before a fraction. Then "
        f"set {typed('data.decimal', other)}. Remove it if it groups digits, or, if the column "
        f"holds categories, set data.categories=[{name}]."
    )


def _refuse_many_words(path: Path, name: str, found: Cells) -> None:
    """Refuse names, sentences and the like as categories: each value would be one of its own."""
    different = _MOST_WORDS + 1 if found.different is None else len(found.words.words)
    if different > _MOST_WORDS or (found.filled >= _FEW_ROWS and 2 * different > found.filled):
        many = f"more than {_MOST_WORDS:,}" if found.different is None else f"{different:,}"
        raise DataError(
            f"{path}, column {name}: {found.filled:,} rows have {many} different words, too many "
            f"for categories. Leave the column out with data.ignore=[{name}], or, if it holds "
            f"sentences, set data.text={name}."
        )


def said(
    path: Path, rows: int, kinds: Mapping[str, Kind], cells: Mapping[str, Cells], roles: Roles
) -> list[str]:
    """Return lines that tell what was inferred."""
    inputs = {name: kind for name, kind in kinds.items() if name != roles.target}
    lines = [f"{path}: {rows:,} rows"]
    for kind, title in (("number", "numbers"), ("word", "categories"), ("text", "text")):
        names = [
            f"{name} ({len(cells[name].words.words)})" if kind == "word" else name
            for name in inputs
            if inputs[name] == kind
        ]
        if names:
            lines.append(f"  {title}: {', '.join(names)}")
    lines.append(f"  target: {roles.target} ({task_of_kinds(kinds, roles.target)})")
    if roles.client is not None:
        lines.append(f"  clients: {roles.client} ({len(cells[roles.client].words.words)})")
    left = [name for name in cells if name not in kinds and name != roles.client]
    if left:
        named = [name or "''" for name in left]
        lines.append(f"  empty or without a name, left out: {', '.join(named)}")
    return lines


def task_of_kinds(kinds: Mapping[str, Kind], target: str) -> str:
    """Return the task that a target of this kind poses."""
    return "classification" if kinds[target] == "word" else "regression"
