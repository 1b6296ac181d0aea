"""Tables of several Parquet files: the rows of one table, and errors that name file and column."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from heliotrope.errors import DataError
from tests.own_files import prepared, table


def rows(rng: np.random.Generator, count: int) -> pa.Table:
    """Draw rows of numbers with gaps, words, clients and a target."""
    return pa.table(
        {
            "size": pa.array(rng.normal(0, 9, count), mask=rng.random(count) < 0.1),
            "kind": pa.array([("a", "bb", None)[n] for n in rng.integers(0, 3, count)]),
            "site": pa.array([f"s{n}" for n in rng.integers(0, 4, count)]),
            "age": pa.array(rng.integers(0, 99, count)),
            "sick": pa.array(rng.integers(0, 3, count)),
        }
    )


def divided(rng: np.random.Generator, whole: pa.Table, folder: Path) -> Path:
    """Write a table as files of other sizes, orders of columns, encodings and row groups."""
    ends = sorted(rng.integers(0, whole.num_rows + 1, 3).tolist())
    for number, (start, end) in enumerate(zip([0, *ends], [*ends, whole.num_rows], strict=True)):
        some = whole.slice(start, end - start)
        if number:  # the first file's order is that of the table
            some = some.select([some.column_names[n] for n in rng.permutation(some.num_columns)])
        if rng.random() < 0.5:
            place = some.column_names.index("kind")
            some = some.set_column(place, "kind", some["kind"].dictionary_encode())
        file = folder / f"part-{number}" / f"{number}.parquet"
        file.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(some, file, row_group_size=int(rng.integers(1, 30)))
    (folder / "_metadata.parquet").write_bytes(b"what others write beside them")
    return folder


def assert_same(one: Any, other: Any) -> None:
    for ours, theirs in zip(prepared(one)[:2], prepared(other)[:2], strict=True):
        assert list(ours) == list(theirs)
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name
    assert np.array_equal(one.train.keys, other.train.keys)


def test_files_of_a_folder_are_one_table(rng: np.random.Generator, tmp_path: Path) -> None:
    whole = rows(rng, 120)
    pyarrow.parquet.write_table(whole, tmp_path / "whole.parquet")
    folder = divided(rng, whole, tmp_path / "files")
    one = table(tmp_path / "whole.parquet", client="site", ignore=[])
    for path in (folder, folder / "*" / "[0-9].parquet"):
        assert_same(one, table(path, client="site", ignore=[]))


def test_a_bad_cell_is_named_by_its_own_file(rng: np.random.Generator, tmp_path: Path) -> None:
    whole = rows(rng, 40)
    pyarrow.parquet.write_table(whole, tmp_path / "0.parquet")
    targets = whole["sick"].to_pylist()
    targets[6] = None
    place = whole.column_names.index("sick")
    changed = whole.set_column(place, "sick", pa.array(targets))
    pyarrow.parquet.write_table(changed, tmp_path / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet, row 7, column sick: it is empty"):
        table(tmp_path, ignore=[])
    found = table(tmp_path, ignore=[], bad_rows="skip")
    assert len(found.train) + len(found.test) == 79


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _written(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pyarrow.parquet.write_table(pa.table(columns), path)


def _twice(path: Path) -> None:
    names = ["x", "x", "sick"]
    pyarrow.parquet.write_table(pa.table([[1], [2], [3]], names=names), path)


_REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "other type": (
        _written(x=["1"], sick=[0]),
        r"b\.parquet, column x: it holds string, but ",
    ),
    "no column": (_written(sick=[0]), r"b\.parquet has no column x, which .*a\.parquet has"),
    "one more": (_written(x=[1], y=[1], sick=[0]), r"a\.parquet has no column y, which .*b\.par"),
    "cut off": (_cut, r"b\.parquet is no Parquet file: .* cut off or of another kind"),
    "empty": (lambda path: path.write_bytes(b""), r"b\.parquet is no Parquet file: it is empty"),
    "no Parquet": (lambda path: path.write_text("x,sick\n1,2\n"), r"b\.parquet is no Parquet file"),
    "twice": (_twice, r"b\.parquet has two columns x\. Rename"),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_a_file_that_does_not_belong_to_the_others_is_named(case: str, tmp_path: Path) -> None:
    change, said = _REFUSED[case]
    for name in "abc":
        _written(x=range(9), sick=[0, 1, 2] * 3)(tmp_path / f"{name}.parquet")
    change(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=said) as refused:
        table(tmp_path, ignore=[])
    assert refused.value.exit_code == 2


def test_a_column_that_names_of_folders_alone_tell_is_refused(tmp_path: Path) -> None:
    for number, site in enumerate("ab"):
        folder = tmp_path / "2026" / f"site={site}"
        folder.mkdir(parents=True)
        _written(x=range(9), sick=[0, 1, 2] * 3)(folder / f"{number}.parquet")
    pattern = re.escape(f"data.path={tmp_path}/*/*/*.parquet")
    with pytest.raises(DataError, match=rf"0\.parquet: the column site is in no file.*{pattern}"):
        table(tmp_path, ignore=[])
    found = table(tmp_path / "*" / "*" / "*.parquet", ignore=[])
    assert len(found.train) + len(found.test) == 18
    for file in tmp_path.rglob("*.parquet"):  # some write it into the files, too
        _written(x=range(9), sick=[0, 1, 2] * 3, site=["a", "b", "a"] * 3)(file)
    assert "site" in table(tmp_path, ignore=[]).train.columns


def test_paths_without_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder holds no \.parquet files"):
        table(tmp_path)
    for nothing in ("*.parquet", "rows"):
        with pytest.raises(DataError, match="there is no such file"):
            table(tmp_path / nothing)
    _written(x=pa.array([], pa.int64()), sick=pa.array([], pa.int64()))(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        table(tmp_path / "*.parquet", ignore=[])
    _written(x=[[1, 2]], sick=[1])(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"column x: it holds list.*data\.ignore=\[x\]"):
        table(tmp_path / "b.parquet", ignore=[])
