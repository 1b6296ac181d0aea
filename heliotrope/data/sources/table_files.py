"""Rows of a CSV, Parquet or JSONL file, column by column, as Arrow arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliotrope.config.own_files import absent
from heliotrope.data.columns import row_of
from heliotrope.data.sources.parquet_files import ParquetFiles, arrow_column
from heliotrope.errors import DataError
from heliotrope.shell import typed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["AS_USUAL", "TABLES", "CsvFormat", "Rows", "is_parquet", "read_parquet", "read_rows"]

TABLES = (".csv", ".parquet", ".jsonl")
"""What the names of tables end with."""

_BLOCK = 1 << 26  # bytes of a CSV file that are read at once: no row may be longer
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"]


@dataclass(frozen=True)
class CsvFormat:
    r"""How a .csv file is written; a delimiter `\t`, as one types it, is a tab.

    `decimal` goes for numbers that another kind of file holds as text, too.
    """

    delimiter: str = ","
    encoding: str = "utf-8"
    decimal: str = "."

    @property
    def character(self) -> str:
        """The delimiter, one character."""
        return "\t" if self.delimiter == r"\t" else self.delimiter


AS_USUAL = CsvFormat()
"""Commas between cells, points in numbers, and UTF-8."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What a file holds.

    Parameters
    ----------
    path
        The file.
    columns
        Name -> Arrow array of strings, whole numbers, floating-point numbers or booleans.
    numbers
        Of each row, its place among the rows of the file, counted from 1: bad ones are left out.
    bad
        Why rows were left out, a line each.
    decimal
        What comes before the fraction of a number that is written as text: a point or a comma.
    files
        If the rows are of several files: each, and its number of rows. `numbers` go on from one
        to the next.
    content
        A hash of Parquet files; None of others.
    """

    path: Path
    columns: dict[str, pa.Array]
    numbers: list[int]
    bad: list[str]
    decimal: str = "."
    files: tuple[tuple[Path, int], ...] = ()
    content: str | None = None

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The Arrow type of each column."""
        return {name: column.type for name, column in self.columns.items()}

    def where(self, row: int) -> str:
        """Return the file, and the number there, of the row at index `row`, for messages."""
        return row_of(self.path, self.files, self.numbers[row])

    def keep(self, rows: list[int], bad: list[str]) -> Rows:
        """Return these rows alone; `bad` says why the others go."""
        import pyarrow as pa

        places = pa.array(rows, pa.int64())  # of none, too, it has a type
        columns = {name: column.take(places) for name, column in self.columns.items()}
        numbers = [self.numbers[row] for row in rows]
        return replace(self, columns=columns, numbers=numbers, bad=self.bad + bad)


def read_rows(path: Path, *, key: str, skip_bad: bool, csv_format: CsvFormat = AS_USUAL) -> Rows:
    """Read a table that `key` names, whose kind its name tells: .csv, .parquet or .jsonl.

    A folder, or a pattern, is one of .parquet files. A row that is not one (another number of
    cells, no JSON) is left out if `skip_bad`.

    Raises
    ------
    DataError
        If the file is not there, cannot be read, holds no rows, has two columns of one name, or a
        row is bad and `skip_bad` is false; names key, file, row and column.
    """
    if is_parquet(path):
        return read_parquet(ParquetFiles.of(path, key), csv_format.decimal)
    if not path.exists():
        raise absent(key, path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(
            f"{path} is none of the tables that can be read: {', '.join(TABLES)}. Convert it, or "
            "give it the ending of what it is."
        )
    try:
        rows = _READERS[suffix](path, skip_bad, csv_format)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not rows.numbers:
        raise DataError(f"{path} holds no rows.")
    return replace(rows, decimal=csv_format.decimal)


def _read_csv(path: Path, skip_bad: bool, csv_format: CsvFormat) -> Rows:
    """Read all cells as text: what they are is decided by all of a column together."""
    import pyarrow as pa
    from pyarrow import csv

    _refuse_other_delimiter(path, csv_format)
    wrong: list[tuple[int, str]] = []

    def handle(row: csv.InvalidRow) -> str:
        reason = f"{row.actual_columns} cells where the header has {row.expected_columns}"
        wrong.append((row.number - 1, reason))  # the header is row 1
        return "skip"

    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(
                use_threads=False,  # rows in order
                block_size=_BLOCK,
                encoding=csv_format.encoding,
            ),
            parse_options=csv.ParseOptions(
                delimiter=csv_format.character,
                invalid_row_handler=handle,
                newlines_in_values=True,
            ),
            convert_options=csv.ConvertOptions(default_column_type=pa.string()),
        )
        columns = _columns(path, _trimmed(table))
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        _refuse_other_encoding(path, csv_format.encoding)
        raise DataError(f"{path} is no CSV file: {error}.") from error
    bad = [f"{path}, row {number}: {reason}" for number, reason in wrong]
    if bad and not skip_bad:
        raise _refused(bad)
    left_out = {number for number, _ in wrong}
    total = table.num_rows + len(left_out)
    numbers = [number for number in range(1, total + 1) if number not in left_out]
    return Rows(path, columns, numbers, bad)


def _trimmed(table: pa.Table) -> pa.Table:
    """Return cells and names without the spaces around them, missing cells as null."""
    import pyarrow as pa
    from pyarrow import compute

    columns = []
    for column in table.columns:
        cells = compute.utf8_trim_whitespace(column)
        missing = compute.is_in(cells, value_set=pa.array(_MISSING))
        columns.append(compute.if_else(missing, pa.scalar(None, pa.string()), cells))
    return pa.table(columns, names=[name.strip() for name in table.column_names])


def _refuse_other_delimiter(path: Path, csv_format: CsvFormat) -> None:
    """Refuse a file whose header is one column, but would be several with another delimiter."""
    with path.open(encoding=csv_format.encoding, errors="replace", newline="") as file:
        header = file.readline().strip()
    if csv_format.character in header:
        return
    other = max(_DELIMITERS, key=header.count)
    if other in header:
        now, instead = (
            typed("data.delimiter", each.replace("\t", r"\t"))
            for each in (csv_format.delimiter, other)
        )
        raise DataError(
            f"{path}: with {now} its header is one column, {header[:60]}, which has "
            f"{_DELIMITERS[other]} in it. Set {instead}."
        )


def _refuse_other_encoding(path: Path, encoding: str) -> None:
    """Refuse a file that is no text in `encoding`; names line and byte."""
    content = path.read_bytes()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        likely = "latin-1 or cp1252" if encoding.lower() in ("utf-8", "utf8") else "utf-8"
        likely = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else likely
        raise DataError(
            f"{path}, line {line}: the byte {content[error.start]:#04x} is no text in "
            f"data.encoding={encoding}. Set data.encoding to that which the file was written in, "
            f"such as {likely}."
        ) from error


def is_parquet(path: Path) -> bool:
    """Return whether a path is one of Parquet files: one, a folder of them, or a pattern."""
    return path.suffix.lower() == ".parquet" or path.is_dir()


def read_parquet(files: ParquetFiles, decimal: str) -> Rows:
    """Read all rows of Parquet files; raises `DataError` naming a file that is damaged."""
    import pyarrow as pa

    blocks = [columns for _, columns in files.blocks(list(files.types))]
    columns = {name: pa.concat_arrays([block[name] for block in blocks]) for name in files.types}
    numbers = list(range(1, files.rows + 1))
    return Rows(files.path, columns, numbers, [], decimal, files.files, files.content)


def _read_jsonl(path: Path, skip_bad: bool, _csv: CsvFormat) -> Rows:
    import pyarrow as pa

    found: list[dict[str, Any]] = []
    numbers, bad = [], []
    with path.open(encoding="utf-8-sig", errors="replace") as file:  # Windows begins with a mark
        for number, line in enumerate((line for line in file if line.strip()), start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("it is no object in braces")
            except ValueError as error:
                bad.append(f"{path}, row {number}: {error}")
                continue
            found.append(row)
            numbers.append(number)
    if bad and not skip_bad:
        raise _refused(bad)
    names = list(dict.fromkeys(name for row in found for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in found]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
            columns[name] = pa.array([_as_text(value) for value in values], pa.string())
    return Rows(path, _columns(path, pa.table(columns)) if columns else {}, numbers, bad)


def _as_text(value: object) -> str | None:
    """Return a cell that Arrow has no type for: they are told apart like those of a CSV file.

    Such are those of a column of mixed types, large numbers, and texts that are no Unicode.
    """
    return None if value is None else str(value).encode("utf-8", "replace").decode()


def _columns(path: Path, table: pa.Table) -> dict[str, pa.Array]:
    """Return the columns of a table, each as one array of a type that a model can be given."""
    columns: dict[str, pa.Array] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in columns:
            raise DataError(f"{path} has two columns {name}. Rename one of them.")
        columns[name] = arrow_column(column)
    return columns


def _refused(bad: list[str]) -> DataError:
    more = f" ({len(bad):,} such rows)" if len(bad) > 1 else ""
    return DataError(f"{bad[0]}{more}. Mend the file, or set data.bad_rows=skip.")


_READERS: dict[str, Callable[[Path, bool, CsvFormat], Rows]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
