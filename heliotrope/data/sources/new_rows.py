"""New rows for a trained model: the columns that its preparation reads, from a user's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heliotrope.data.columns import Raw, Texts, Values
from heliotrope.data.preparation import Kind, Preparation
from heliotrope.data.sources.cells import convert
from heliotrope.data.sources.folders import files_in, read_files, read_text
from heliotrope.data.sources.new_arrays import read_new_arrays
from heliotrope.data.sources.pictures import PICTURES, read_image
from heliotrope.data.sources.table_files import AS_USUAL, TABLES, CsvFormat, read_rows
from heliotrope.errors import DataError

__all__ = ["NewRows", "read_new_rows"]


@dataclass(frozen=True, eq=False)
class NewRows:
    """Rows to be predicted.

    Parameters
    ----------
    raw
        Their columns, without what is to be predicted.
    names
        Of each row, what it is called: its number in a table, or its file.
    left_out
        Why rows were left out, a line each.
    """

    raw: Raw
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def read_new_rows(
    path: Path,
    preparation: Preparation,
    *,
    skip_bad: bool = False,
    csv_format: CsvFormat = AS_USUAL,
    array: str | None = None,
) -> NewRows:
    """Read what a trained model can be given.

    Parameters
    ----------
    path
        A table (.csv, .parquet, .jsonl) with the columns that the preparation reads; a picture, or
        a folder of pictures; a text (.txt), or a folder of texts; an .npz file of arrays.
    preparation
        The model's own.
    skip_bad
        Leave bad rows out instead of refusing them.
    csv_format
        How a .csv file is written.
    array
        The name that the array of the inputs had in training, if they were one of `data=arrays`;
        otherwise arrays have the names of the columns. The only array may have any name.

    Raises
    ------
    DataError
        If the file cannot be read, or is not what the model takes; names file, row and column.
    """
    inputs: dict[str, Kind] = {}
    for step in preparation.steps:
        if not step.of_targets:
            inputs.update(step.reads())
    kinds = set(inputs.values())
    if path.suffix.lower() in TABLES and not kinds & {"image", "stream", "array"}:
        return _from_table(path, inputs, skip_bad, csv_format)
    if path.suffix.lower() == ".npz" and (array is not None or kinds <= {"array", "image"}):
        raw = read_new_arrays(path, inputs, array)
        return NewRows(raw, tuple(map(str, range(1, len(raw) + 1))))
    if kinds == {"image"}:
        (column,) = inputs
        return _from_pictures(path, column, preparation.info().image_shape, skip_bad)
    if kinds == {"text"}:
        (column,) = inputs
        return _from_texts(path, column, skip_bad)
    wanted = ", ".join(f"{name} ({kind})" for name, kind in inputs.items())
    raise DataError(
        f"{path} is not what the model takes: {wanted}. Name a {' or '.join(TABLES)} file with "
        "these columns; for images alone a picture or a folder of them, for texts alone a .txt "
        "file or a folder of them; for arrays an .npz file."
    )


def _from_table(
    path: Path, inputs: Mapping[str, Kind], skip_bad: bool, csv_format: CsvFormat
) -> NewRows:
    rows = read_rows(path, key="input", skip_bad=skip_bad, csv_format=csv_format)
    raw, bad = convert(rows, inputs, skip_bad=skip_bad)
    assert raw.numbers is not None
    return NewRows(raw, tuple(map(str, raw.numbers.tolist())), tuple(bad))


def _from_pictures(path: Path, column: str, shape: tuple[int, ...], skip_bad: bool) -> NewRows:
    files = _files(path, PICTURES)
    pictures, bad = read_files(files, lambda file: read_image(file, shape), skip_bad=skip_bad)
    images = Values(np.stack([image for _, image in pictures]))
    names = tuple(str(file) for file, _ in pictures)
    return NewRows(Raw({column: images}, origin=str(path)), names, tuple(bad))


def _from_texts(path: Path, column: str, skip_bad: bool) -> NewRows:
    texts, bad = read_files(_files(path, (".txt",)), read_text, skip_bad=skip_bad)
    names = tuple(str(file) for file, _ in texts)
    raw = Raw({column: Texts([text for _, text in texts])}, origin=str(path))
    return NewRows(raw, names, tuple(bad))


def _files(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """Return a file, or those of a folder that have one of these endings."""
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder.")
    given = [path] if path.suffix.lower() in endings else []
    files = files_in(path, endings) if path.is_dir() else given
    if not files:
        raise DataError(f"{path} holds none of the files {', '.join('*' + e for e in endings)}.")
    return files
