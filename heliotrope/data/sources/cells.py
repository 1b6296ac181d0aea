"""From the cells of a table to columns of one kind each; a cell that does not fit is named."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from heliotrope.data.columns import Column, Raw, Strings, Texts, Values
from heliotrope.data.preparation import Kind
from heliotrope.data.sources.table_files import Rows
from heliotrope.errors import DataError, closest
from heliotrope.shell import typed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "as_numbers",
    "as_text",
    "as_words",
    "check_kinds",
    "convert",
    "good_rows",
    "other_decimal",
    "present",
    "raw_of",
    "refuse_types",
    "require",
]

_MOST_EXACT = float(1 << 53)  # floating-point numbers below it have their last digit


def require(path: Path, names: Collection[str], key: str, name: str) -> None:
    """Raise `DataError` unless a file has the column `name`, which `key` asks for."""
    if name not in names:
        raise DataError(
            f"{key}={name}: {path} has no such column. It has {', '.join(names)}."
            f"{closest(name, names)}"
        )


def refuse_types(
    path: Path,
    types: Mapping[str, pa.DataType],
    names: Iterable[str],
    *,
    texts: Collection[str] = (),
) -> None:
    """Raise `DataError` if one of these columns holds lists, bytes or the like.

    `types` are those of all columns of a file. Those among `texts` must hold texts.
    """
    import pyarrow as pa

    is_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    for name in names:
        kind = types[name]
        if name in texts and not pa.types.is_string(kind):
            raise DataError(f"{path}, column {name}: it holds {kind}, not texts. Convert it.")
        if pa.types.is_nested(kind) or any(is_kind(kind) for is_kind in is_bytes):
            raise DataError(
                f"{path}, column {name}: it holds {kind}, of which no number, word or text "
                f"can be made. Convert it, or leave it out with data.ignore=[{name}]."
            )


def convert(
    rows: Rows,
    kinds: Mapping[str, Kind],
    *,
    required: tuple[str, ...] = (),
    key: str | None = None,
    skip_bad: bool,
    categories: bool = False,
) -> tuple[Raw, list[str]]:
    """Return columns of these kinds, and why rows were left out.

    Parameters
    ----------
    rows
        What a file holds.
    kinds
        Column -> `number`, `id`, `word` or `text`; others are left out.
    required
        Columns that no row may lack, such as the target.
    key
        The column of the natural groups; no row may lack it.
    skip_bad
        Leave bad rows out instead of refusing them.
    categories
        Whether `data.categories` can still make categories of numbers: not for a trained model.

    Raises
    ------
    DataError
        If a column is missing, no row is good, or one is bad and `skip_bad` is false; names file,
        row and column.
    """
    needed = (*required, *(() if key is None else (key,)))
    check_kinds(rows.path, rows.types, kinds, needed)
    good = good_rows(rows, kinds, needed, skip_bad=skip_bad, categories=categories)
    if not good.numbers:
        raise DataError(f"{rows.path} has no good row. The first: {good.bad[0]}.")
    return raw_of(good, kinds, key), good.bad


def check_kinds(
    path: Path, types: Mapping[str, pa.DataType], kinds: Mapping[str, Kind], needed: Iterable[str]
) -> None:
    """Raise `DataError` if a file lacks a column of these kinds, or one of another type."""
    for name in kinds:
        if name not in types:
            raise DataError(
                f"{path} has no column {name}, which the training data has. It has "
                f"{', '.join(types)}.{closest(name, types)} Add it."
            )
    texts = [name for name, kind in kinds.items() if kind == "text"]
    refuse_types(path, types, [*kinds, *needed], texts=texts)


def good_rows(
    rows: Rows,
    kinds: Mapping[str, Kind],
    needed: tuple[str, ...],
    *,
    skip_bad: bool,
    categories: bool,
) -> Rows:
    """Return the rows whose cells are of these kinds, and that have all that is `needed`.

    The others are told of in its `bad`. Raises `DataError` if there are some and `skip_bad` is
    false, as `convert` does.
    """
    bad, choosable = _bad_rows(rows, kinds, needed, categories=categories)
    if not bad:
        return rows
    lines = [f"{rows.where(row)}, {bad[row]}" for row in sorted(bad)]
    if not skip_bad:
        more = f" ({len(bad):,} such rows)" if len(bad) > 1 else ""
        remedy = "Mend the file, or set data.bad_rows=skip."
        if min(bad) in choosable:
            remedy = (
                "Mend the file, set data.bad_rows=skip, or, if the column does not hold numbers, "
                "name it in data.categories."
            )
        raise DataError(f"{lines[0]}{more}. {remedy}")
    return rows.keep([row for row in range(len(rows.numbers)) if row not in bad], lines)


def _bad_rows(
    rows: Rows, kinds: Mapping[str, Kind], needed: tuple[str, ...], *, categories: bool
) -> tuple[dict[int, str], set[int]]:
    """Return what is wrong with each bad row, and those that would be good as categories."""
    bad: dict[int, str] = {}
    choosable: set[int] = set()
    other = other_decimal(rows)
    for name in needed:
        for row in np.flatnonzero(~present(rows.columns[name])).tolist():
            bad.setdefault(row, f"column {name}: it is empty")
    for name, kind in kinds.items():
        if kind in ("number", "id"):
            column = rows.columns[name]
            wrong = as_numbers(column, rows.decimal)[1]
            otherwise = set(as_numbers(column, other)[1] if wrong else [])
            for row in wrong:
                found = column[row].as_py()
                hint = "" if row in otherwise else f", but with {typed('data.decimal', other)}"
                if row not in bad and categories and name not in needed:
                    choosable.add(row)
                bad.setdefault(row, f"column {name}: '{found}' is no finite number{hint}")
        elif kind == "text":
            for row in np.flatnonzero(~_has_letters(rows.columns[name])).tolist():
                bad.setdefault(row, f"column {name}: the text is empty")
    return bad, choosable


def other_decimal(rows: Rows) -> str:
    """Return what the file may have before its fractions instead: a comma, or a point."""
    return "," if rows.decimal == "." else "."


def as_numbers(array: pa.Array, decimal: str) -> tuple[NDArray[np.float64], list[int]]:
    """Return cells as numbers, NaN for the missing ones, and the rows of those that are none.

    Of a text, a fraction comes after `decimal`; with a comma, a point is none: it would group
    digits.
    """
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        numbers = _floats(array)
        wrong = np.isinf(numbers)
        if not wrong.any():
            return numbers, []
        return np.where(wrong, np.nan, numbers), np.flatnonzero(wrong).tolist()
    if pa.types.is_string(array.type):
        trimmed = compute.utf8_trim_whitespace(array)
        if decimal == ",":
            pointed = compute.match_substring(trimmed, ".")
            trimmed = compute.if_else(pointed, "", compute.replace_substring(trimmed, ",", "."))
        try:
            numbers = _floats(trimmed.cast(pa.float64()))
        except pa.ArrowInvalid:
            numbers = np.array([_number(text) for text in trimmed.to_pylist()])
    else:
        numbers = np.full(len(array), np.nan)
    wrong = present(array) & ~np.isfinite(numbers)
    return np.where(np.isfinite(numbers), numbers, np.nan), np.flatnonzero(wrong).tolist()


def as_words(array: pa.Array) -> Strings:
    """Return cells as words of a small set, as `as_text` writes them."""
    encoded = as_text(array).dictionary_encode()
    words = encoded.dictionary.to_pylist()
    order = sorted(range(len(words)), key=words.__getitem__)
    code_of = np.empty(len(words) + 1, dtype=np.int32)
    code_of[order], code_of[-1] = np.arange(len(words)), -1
    codes = encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    return Strings(code_of[codes], tuple(words[index] for index in order))


def as_text(array: pa.Array) -> pa.Array:
    """Return cells as text without spaces around it; NaN is a missing one.

    Floating-point numbers that are whole are written as 1, not 1.0: what a cell is called does not
    depend on others, such as those of another file.
    """
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_string(array.type):
        return compute.utf8_trim_whitespace(array)
    if not pa.types.is_floating(array.type):
        return array.cast(pa.string())
    if array.type == pa.float16():  # of which Arrow can tell little
        array = array.cast(pa.float32())
    array = compute.if_else(compute.is_nan(array), pa.scalar(None, array.type), array)
    exact = compute.less(compute.abs(array), _MOST_EXACT)
    whole = compute.and_(compute.equal(array, compute.floor(array)), exact)
    integers = compute.if_else(whole, array, pa.scalar(0, array.type)).cast(pa.int64())
    return compute.if_else(whole, integers.cast(pa.string()), array.cast(pa.string()))


def present(array: pa.Array) -> NDArray[np.bool_]:
    """Return where cells are not missing, [N]."""
    import pyarrow as pa
    from pyarrow import compute

    nan = pa.types.is_floating(array.type)
    there: NDArray[np.bool_] = compute.is_valid(array).to_numpy(zero_copy_only=False)
    return there & ~np.isnan(_floats(array)) if nan else there


def raw_of(rows: Rows, kinds: Mapping[str, Kind], key: str | None) -> Raw:
    """Return good rows as columns of these kinds, and the natural groups in the column `key`."""
    columns: dict[str, Column] = {}
    for name, kind in kinds.items():
        array = rows.columns[name]
        if kind in ("number", "id"):
            columns[name] = Values(as_numbers(array, rows.decimal)[0])
        elif kind == "word":
            columns[name] = as_words(array)
        else:
            columns[name] = Texts(array.to_pylist())
    keys = None
    if key is not None:
        groups = as_words(rows.columns[key])
        keys = np.array(groups.words)[groups.codes]
    numbers = np.array(rows.numbers, dtype=np.int64)
    return Raw(columns, keys, str(rows.path), numbers, rows.files)


def _floats(array: pa.Array) -> NDArray[np.float64]:
    """Return floating-point cells, NaN for missing ones."""
    values: NDArray[np.float64] = array.to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def _number(text: str | None) -> float:
    try:
        return np.nan if text is None else float(text)
    except ValueError:
        return np.nan


def _has_letters(array: pa.Array) -> NDArray[np.bool_]:
    return np.array([text is not None and bool(text.strip()) for text in array.to_pylist()])
