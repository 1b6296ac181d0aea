"""A cell means the same however a file writes it: with spaces, as 1.0, as True, as pandas does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from heliotrope.data import Batch
from heliotrope.data.posing import posing
from heliotrope.data.preparation import Preparation, Statistics
from heliotrope.data.sources.arrays import arrays
from heliotrope.data.sources.cells import as_text
from heliotrope.data.sources.new_rows import read_new_rows
from heliotrope.data.sources.table import table
from heliotrope.data.sources.table_files import CsvFormat, read_rows
from heliotrope.data.sources.unprepared import Unprepared
from heliotrope.errors import DataError


def csv_of(path: Path, lines: Sequence[str], encoding: str = "utf-8") -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return str(path)


def preparation_of(found: Unprepared) -> Preparation:
    statistics = Statistics.of(found.steps, found.train, "training")
    return Preparation.of(found.steps, statistics, "training", found.task)


def whole(preparation: Preparation, found: Any) -> Batch:
    return preparation.apply(found).take(torch.arange(len(found)))


def test_spaces_around_cells_and_names_mean_nothing(tmp_path: Path) -> None:
    """As in UCI's files, where a missing cell is ' ?'."""
    rows = [("?" if n % 4 == 0 else 20 + n, "?" if n % 5 == 0 else "ab"[n % 2]) for n in range(20)]
    plain = ["age,work,rich", *(f"{a},{w},{n % 2}" for n, (a, w) in enumerate(rows))]
    spaced = [" age , work, rich ", *(f" {a},{w} , {n % 2}" for n, (a, w) in enumerate(rows))]
    found, other = (
        table(path=csv_of(tmp_path / f"{name}.csv", lines), target="rich")
        for name, lines in (("plain", plain), ("spaced", spaced))
    )
    preparations = [preparation_of(each) for each in (found, other)]
    assert preparations[0] == preparations[1]
    assert preparations[0].info().categories == {"work": 4}  # two words, the unseen, the missing
    batches = [whole(preparations[0], each.train).values() for each in (found, other)]
    for ours, theirs in zip(*batches, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


_CSV = ("kind,ill,x,y", "1.0,True,1,a", "2.0,False,2,b", ",,3,a", "7,maybe,4,b")
_JSON = (
    '{"kind": 1.0, "ill": true, "x": 1}',
    '{"kind": 2, "ill": false, "x": 1}',
    '{"kind": null, "ill": null, "x": 1}',
    '{"kind": 7, "ill": "maybe", "x": 1}',
)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_word_is_the_same_in_a_file_of_another_kind(ending: str, tmp_path: Path) -> None:
    """In pandas' CSV truth values are True, and whole numbers 1.0 where a cell is missing."""
    trained = {"kind": pa.array([1, 2] * 9), "ill": pa.array([True, False] * 9)}
    trained |= {"x": pa.array(range(18)), "y": pa.array(["a", "b"] * 9)}
    pyarrow.parquet.write_table(pa.table(trained), tmp_path / "train.parquet")
    path = str(tmp_path / "train.parquet")
    preparation = preparation_of(table(path=path, target="y", categories=["kind"]))
    new = tmp_path / f"new.{ending}"
    if ending == "parquet":
        kinds = pa.array([1.0, 2.0, float("nan"), 7.0])
        ill = pa.array(["TRUE", "false", None, "maybe"])
        pyarrow.parquet.write_table(pa.table({"kind": kinds, "ill": ill, "x": range(4)}), new)
    else:
        csv_of(new, _CSV if ending == "csv" else _JSON)
    found = whole(preparation, read_new_rows(new, preparation).raw)["category"]
    # 0 is what training has not seen, 1 a missing word; false is before true.
    assert found.tolist() == [[2, 3], [3, 2], [1, 1], [0, 0]]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_a_number_is_the_same_word_whatever_others_a_file_has(kind: pa.DataType) -> None:
    cells = pa.array(np.array([1, 2, 1.5, -0.0, np.nan], np.float16)).cast(kind)
    words = as_text(cells).to_pylist()
    assert words == ["1", "2", "1.5", "0", None]
    assert words == [as_text(cells.slice(row, 1))[0].as_py() for row in range(len(cells))]


def test_numbers_of_any_size_are_words_of_their_own() -> None:
    numbers = [1e300, 2e300, -1e19, float("inf"), 2.0**53, 2.0**53 + 2, 4.0, None, float("nan")]
    found = as_text(pa.array(numbers)).to_pylist()
    assert found[6:] == ["4", None, None]
    assert [float(word) for word in found[:6]] == numbers[:6]


def test_classes_are_found_however_the_test_file_writes_them(tmp_path: Path) -> None:
    train = csv_of(tmp_path / "train.csv", ["x,y", *(f"{n},{n % 2}" for n in range(20))])
    test = csv_of(tmp_path / "test.csv", ["x,y", "1,1.0", "2,0.0"])
    found = table(path=train, test=test, target="y")
    assert whole(preparation_of(found), found.test)["label"].tolist() == [1, 0]


def test_the_numbers_of_rows_that_pandas_writes_are_no_input(tmp_path: Path) -> None:
    frame = {"x": pa.array([1.0, 2.0] * 9), "y": pa.array(["a", "b"] * 9)}
    frame["__index_level_0__"] = pa.array(range(18))
    pyarrow.parquet.write_table(pa.table(frame), tmp_path / "rows.parquet")
    csv_of(tmp_path / "rows.csv", [",x,y", *(f"{n},{n % 7},{n % 2}" for n in range(20))])
    for ending, name in (("csv", "''"), ("parquet", "__index_level_0__")):
        found = table(path=str(tmp_path / f"rows.{ending}"), target="y")
        assert preparation_of(found).info().numeric == ("x",)
        assert found.notes[-1] == f"  empty or without a name, left out: {name}"


def test_long_texts_and_marks_at_the_beginning_are_read(tmp_path: Path) -> None:
    long = "word " * 300_000  # longer than what pyarrow reads at once by itself
    path = csv_of(tmp_path / "long.csv", ["text,y", "hi,a", f'"{long}",b'])
    assert read_rows(Path(path), key="data.path", skip_bad=False).numbers == [1, 2]
    path = csv_of(tmp_path / "windows.jsonl", ['{"x": 1}', '{"x": 2}'], encoding="utf-8-sig")
    assert list(read_rows(Path(path), key="data.path", skip_bad=False).columns) == ["x"]


def test_numbers_with_decimal_commas_are_read_or_named(tmp_path: Path) -> None:
    """As European spreadsheets write them; they were taken for categories, and for classes."""
    rows = [(n / 4, n % 3 + 0.5, "ab"[n % 2], n / 8) for n in range(24)]
    lines = [f"{a};{b};{c};{y}" for a, b, c, y in rows]
    points = csv_of(tmp_path / "points.csv", ["a;b;c;y", *lines])
    commas = csv_of(tmp_path / "commas.csv", ["a;b;c;y", *(x.replace(".", ",") for x in lines)])
    found = table(path=commas, target="y", delimiter=";", decimal=",")
    assert found.task == "regression"
    preparation = preparation_of(found)
    assert preparation == preparation_of(table(path=points, target="y", delimiter=";"))
    for ignored, column, cell in (([], "a", "0,0"), (["a"], "b", "0,5"), (["a", "b"], "y", "0,0")):
        refused = rf"row 1, column {column}: '{cell}' .* set 'data.decimal=\",\"'.*=\[{column}\]"
        with pytest.raises(DataError, match=refused):
            table(path=commas, target="y", delimiter=";", ignore=ignored)
    with pytest.raises(DataError, match=r"row 1, column a: '0\.0' .* set data\.decimal=\.\."):
        table(path=points, target="y", delimiter=";", decimal=",")
    kept = table(path=commas, target="y", delimiter=";", ignore=["a"], categories=["b", "y"])
    assert (kept.task, len(preparation_of(kept).info().class_names)) == ("classification", 24)
    new = Path(csv_of(tmp_path / "new.csv", ["a;b;c", "1,25;0,5;a"]))
    with pytest.raises(DataError, match=r"'1,25' is no finite number, but with 'data\.decimal="):
        read_new_rows(new, preparation, csv_format=CsvFormat(";"))


@pytest.mark.parametrize("kind", ["table", "arrays"])
def test_whole_numbers_with_a_point_can_be_classes(kind: str, tmp_path: Path) -> None:
    values = [float((n % 3) * 5) for n in range(30)]
    if kind == "table":
        lines = ["x,y", *(f"{n},{value}" for n, value in enumerate(values))]
        found = table(path=csv_of(tmp_path / "rows.csv", lines), target="y")
    else:
        np.savez(tmp_path / "rows.npz", x=np.arange(30.0)[:, None], y=np.array(values))
        found = arrays(path=str(tmp_path / "rows.npz"))
    assert found.task == "regression"
    posed = posing(found, "classification", kind)
    preparation = preparation_of(posed)
    assert (posed.task, preparation.info().class_names) == ("classification", ("0", "5", "10"))
    values_of = found.test.columns[found.steps[-1].column].values  # type: ignore[attr-defined]
    assert (whole(preparation, posed.test)["label"] * 5).tolist() == values_of.tolist()


def test_fractions_cannot_be_classes(tmp_path: Path) -> None:
    lines = ["x,y", *(f"{n},{n / 2}" for n in range(20))]
    found = table(path=csv_of(tmp_path / "rows.csv", lines), target="y")
    with pytest.raises(DataError, match=r"task=classification.*data=table.*y.*such as 0\.5"):
        posing(found, "classification", "table")


@pytest.mark.parametrize(("rows", "classes"), [(20, 11), (2200, 1001)])
def test_too_many_classes_are_refused_unless_they_are_meant(
    rows: int, classes: int, tmp_path: Path
) -> None:
    """Such as prices, which are whole numbers in a file."""
    lines = ["x,y", *(f"{n},{n % classes * 1000}" for n in range(rows))]
    found = table(path=csv_of(tmp_path / "rows.csv", lines), target="y")
    with pytest.raises(DataError, match=rf"has {classes:,} classes in its column y, in {rows:,} r"):
        posing(found, None, "table")
    assert posing(found, "classification", "table") is found
    assert posing(found, "regression", "table").task == "regression"


@pytest.mark.parametrize(
    "cells", [[[1.0, 2.0]], [{"a": 1}], [b"\xff"]], ids=["lists", "objects", "bytes"]
)
def test_columns_of_lists_and_the_like_are_refused_by_name(
    cells: list[Any], tmp_path: Path
) -> None:
    columns = {"x": range(20), "odd": cells * 20, "y": ["a", "b"] * 10}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    path = str(tmp_path / "rows.parquet")
    refused = r"rows\.parquet, column odd: it holds .*leave it out with data\.ignore=\[odd\]"
    for keys in ({}, {"client": "odd"}, {"target": "odd", "ignore": ["y"]}):
        with pytest.raises(DataError, match=refused):
            table(**{"path": path, "target": "y", **keys})
    found = table(path=path, target="y", ignore=["odd"])
    preparation = preparation_of(found)
    with pytest.raises(DataError, match=r"column x: it holds int64, not texts"):
        table(path=path, target="y", ignore=["odd"], text="x")
    changed = pa.table({"x": cells, "y": ["a"]})
    pyarrow.parquet.write_table(changed, tmp_path / "new.parquet")
    with pytest.raises(DataError, match=r"new\.parquet, column x: it holds"):
        read_new_rows(tmp_path / "new.parquet", preparation)


def test_what_arrow_has_no_type_for_is_read_like_text(tmp_path: Path) -> None:
    """Numbers beyond 64 bits, half a surrogate pair, views of texts; and endings in capitals."""
    lines = [f'{{"x": {10**30 + n}, "w": "\\ud800", "y": "{"ab"[n % 2]}"}}' for n in range(20)]
    found = table(path=csv_of(tmp_path / "rows.jsonl", lines), target="y")
    info = preparation_of(found).info()
    assert (info.numeric, info.categories) == (("x",), {"w": 3})
    view = pa.array(["p", "q"] * 10, pa.string_view())
    columns = pa.table({"w": view, "y": ["a", "b"] * 10})
    pyarrow.parquet.write_table(columns, tmp_path / "rows.PARQUET")
    found = table(path=str(tmp_path / "rows.PARQUET"), target="y")
    assert preparation_of(found).info().categories == {"w": 4}
