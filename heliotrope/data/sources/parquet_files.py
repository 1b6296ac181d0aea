"""Parquet files of one schema: a single one, those of a folder, or those that a pattern finds.

All footers are read first: they tell the columns and rows of each file, so that a file that does
not belong to the others is refused before any row is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliotrope.config.own_files import absent, matches
from heliotrope.errors import DataError
from heliotrope.shell import typed

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

__all__ = ["ParquetFiles", "arrow_column"]

_CELL = 8  # bytes that a number takes in memory
_BLOCK_CELLS = 1 << 19  # that are decoded at once
_MOST_ROWS = 1 << 16  # of a block
_BUFFERS = 1 << 24  # bytes that all columns together are read ahead of their cells
_LEAST_BUFFER = 1 << 12
_DIGITS = 16  # of a hash
_FOOTER_END = 8  # bytes after a footer: its length, and the letters PAR1


@dataclass(frozen=True, eq=False)
class ParquetFiles:
    """Files that are one table, in the order of their names.

    Parameters
    ----------
    path
        What the configuration names: a file, a folder, or a pattern.
    files
        Each file, and its number of rows.
    types
        Column -> its Arrow type, as `arrow_column` returns it.
    size
        Bytes that the cells take in memory, about.
    stamp
        A hash of where the files are, their times of change, sizes and footers.
    content
        A hash of their sizes and footers alone, which tell ranges and offsets of all columns.
    """

    path: Path
    files: tuple[tuple[Path, int], ...]
    types: dict[str, pa.DataType]
    size: int
    stamp: str
    content: str

    @classmethod
    def of(cls, path: Path, key: str) -> ParquetFiles:
        """Read the footers of all files that `path`, the value of `key`, names.

        Raises
        ------
        DataError
            If there is no file, one is empty, cut off or of another kind, there are no rows, or a
            column is not the same in all of them, or in the names of folders alone; names file and
            column.
        """
        found: list[tuple[Path, int]] = []
        types: dict[str, pa.DataType] = {}
        size = 0
        stamp, content = hashlib.sha256(), hashlib.sha256()
        first: Path | None = None
        for file in _files_at(path, key):
            with _opened(file) as opened:
                own = _types_of(file, opened.schema_arrow)
                rows = opened.metadata.num_rows
                groups = range(opened.metadata.num_row_groups)
                held = sum(opened.metadata.row_group(group).total_byte_size for group in groups)
            types = own if first is None else _same_types(first, types, file, own)
            first = first or file
            found.append((file, rows))
            size += max(held, rows * len(own) * _CELL)
            footer = _footer(file)
            content.update(footer)
            stamp.update(f"{file.resolve()} {file.stat().st_mtime_ns}\n".encode() + footer)
        if not sum(rows for _, rows in found):
            raise DataError(f"{path} holds no rows.")
        if path.is_dir():
            _refuse_partitions(path, key, [file for file, _ in found], types)
        types = {name: _plain(kind) for name, kind in types.items()}
        return cls(
            path, tuple(found), types, size, stamp.hexdigest(), content.hexdigest()[:_DIGITS]
        )

    @property
    def rows(self) -> int:
        """The number of rows of all files together."""
        return sum(rows for _, rows in self.files)

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, pa.Array]]]:
        """Yield some rows of these columns at a time: the number of rows before, and the columns.

        Raises `DataError` naming the file if a part of it cannot be decoded.
        """
        import pyarrow as pa

        some = max(1, min(_MOST_ROWS, _BLOCK_CELLS // max(1, len(names))))
        before = 0
        for file, rows in self.files:
            done = 0
            with _opened(file, len(names)) as opened:
                batches = opened.iter_batches(batch_size=some, columns=list(names))
                while (batch := _next_batch(file, batches)) is not None:
                    columns = {
                        name: arrow_column(pa.chunked_array([batch[name]]), self.types[name])
                        for name in names
                    }
                    yield before + done, columns
                    done += len(batch)
            if done != rows:
                raise DataError(f"{file} has changed while it was read. Start again.")
            before += rows


def arrow_column(column: pa.ChunkedArray, kind: pa.DataType | None = None) -> pa.Array:
    """Return a column as one array of a type that a model can be given, and cells be told of.

    Encodings go: texts of a dictionary, and large ones, become strings, decimals become numbers,
    and a column in which all is missing strings, unless `kind` says what others hold.
    """
    import pyarrow as pa

    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no chunks, or of too many letters for one
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    wanted = _plain(array.type) if kind is None else kind
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array if array.type == wanted else array.cast(wanted)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type that cells have without an encoding."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_decimal(kind):
        return pa.float64()
    if kind in (pa.null(), pa.large_string(), pa.string_view()):
        return pa.string()
    return kind


def _files_at(path: Path, key: str) -> list[Path]:
    if path.is_dir():
        inside = (file.relative_to(path) for file in path.rglob("*.parquet") if file.is_file())
        # Spark and others write what is no data under such names.
        seen = [file for file in inside if not any(p.startswith((".", "_")) for p in file.parts)]
        if not seen:
            raise DataError(f"{key}={path}: the folder holds no .parquet files.")
        return [path / file for file in sorted(seen)]
    found = [path] if path.exists() else matches(path)
    if not found:
        raise absent(key, path)
    return found


def _refuse_partitions(
    path: Path, key: str, files: Sequence[Path], types: Mapping[str, pa.DataType]
) -> None:
    """Raise `DataError` for a column that only names of folders tell, as in Hive: region=north."""
    for file in files:
        for folder in file.relative_to(path).parts[:-1]:
            column, equals, _ = folder.partition("=")
            if equals and column not in types:
                below = "/".join("*" for _ in file.relative_to(path).parts[:-1])
                pattern = typed(key, f"{path}/{below}/*.parquet")
                raise DataError(
                    f"{file}: the column {column} is in no file, only in the name of a folder, "
                    "which is not read. Write it into the files, or name them by a pattern to "
                    f"leave it out: {pattern}."
                )


def _opened(file: Path, columns: int = 1) -> parquet.ParquetFile:
    """Open a file, whose footer is read, to read so many columns at once; raises `DataError`."""
    import pyarrow as pa
    from pyarrow import parquet

    buffer = max(_LEAST_BUFFER, _BUFFERS // max(1, columns))
    try:
        return parquet.ParquetFile(file, buffer_size=buffer)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error
        if file.stat().st_size == 0:
            raise DataError(f"{file} is no Parquet file: it is empty. Write it again.") from error
        raise DataError(
            f"{file} is no Parquet file: {str(error).rstrip('.')}. It is cut off or of another "
            "kind: write it again."
        ) from error


def _next_batch(file: Path, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    import pyarrow as pa

    try:
        return next(batches, None)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{file} is damaged: {reason}. Write it again.") from error


def _types_of(file: Path, schema: pa.Schema) -> dict[str, pa.DataType]:
    """Return the columns of a file; null for those in which all is missing."""
    import pyarrow as pa

    types: dict[str, Any] = {}
    for field in schema:
        if field.name in types:
            raise DataError(f"{file} has two columns {field.name}. Rename one of them.")
        types[field.name] = field.type if field.type == pa.null() else _plain(field.type)
    return types


def _same_types(
    first: Path, types: dict[str, pa.DataType], file: Path, own: dict[str, pa.DataType]
) -> dict[str, pa.DataType]:
    """Return the types that both have, whose columns may be in any order, or lack all cells."""
    import pyarrow as pa

    for name in (*types, *own):
        if (name in types) != (name in own):
            lacks, has = (file, first) if name in types else (first, file)
            raise DataError(
                f"{lacks} has no column {name}, which {has} has. Write all files with one schema, "
                "or name only those that belong together."
            )
    shared = {}
    for name, kind in types.items():
        kinds = {each for each in (kind, own[name]) if each != pa.null()}
        if len(kinds) > 1:
            raise DataError(
                f"{file}, column {name}: it holds {own[name]}, but {kind} in {first}. Write all "
                "files with one schema, or name only those that belong together."
            )
        shared[name] = kinds.pop() if kinds else kind
    return shared


def _footer(file: Path) -> bytes:
    """Return a file's size and footer, which differ where it was written with other rows."""
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(-_FOOTER_END, 2)
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(-min(length + _FOOTER_END, size), 2)
        return size.to_bytes(8, "little") + opened.read()
