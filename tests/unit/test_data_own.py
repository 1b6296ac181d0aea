"""A user's own files: tables, folders and arrays, and what is said of one that does not fit."""

from __future__ import annotations

import csv
import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from heliotrope.data.columns import Raw, Strings, Texts, Values
from heliotrope.data.info import Info
from heliotrope.data.preparation import Preparation, Statistics
from heliotrope.data.sources import table as source_of_tables
from heliotrope.data.sources.arrays import arrays
from heliotrope.data.sources.folders import images, texts
from heliotrope.data.sources.new_rows import read_new_rows
from heliotrope.data.sources.unprepared import Unprepared
from heliotrope.errors import DataError
from heliotrope.shell import typed

HEADER = ["age", "smokes", "site", "ward", "note", "sick"]


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(32)
    print(f"rng seed: {seed}")  # shown by pytest on failure
    return np.random.default_rng(seed)


def patients(rng: np.random.Generator, count: int = 60) -> list[list[Any]]:
    """Draw rows under `HEADER`, of which some lack a value."""
    rows: list[list[Any]] = []
    for row in range(count):
        age = None if rng.random() < 0.1 else round(float(rng.normal(50, 9)), 1)
        smokes = None if rng.random() < 0.1 else ("yes", "no")[rng.integers(2)]
        note = f"patient number {row} was seen"
        site = "north" if row % 3 else "south"
        rows.append([age, smokes, site, int(rng.integers(1, 4)), note, int(rng.integers(2))])
    return rows


def write(path: Path, rows: list[list[Any]], header: list[str] = HEADER) -> Path:
    columns = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(dict(zip(header, row, strict=True))) for row in rows)
        path.write_text("".join(f"{line}\n" for line in lines))
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([header, *(["" if v is None else v for v in row] for row in rows)])
    return path


def table(path: Path, **changes: Any) -> Unprepared:
    chosen: dict[str, Any] = {"target": "sick", "ignore": ["note"], **changes}
    return source_of_tables.table(path=str(path), **chosen)


def prepared(found: Unprepared) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Info]:
    preparation = preparation_of(found)
    train, test = (
        preparation.apply(split).take(torch.arange(len(split)))
        for split in (found.train, found.test)
    )
    return train, test, preparation.info()


def failure(path: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        table(path, **changes)
    return str(caught.value)


# --- tables -------------------------------------------------------------------------------


def test_kinds_of_files_give_the_same(rng: np.random.Generator, tmp_path: Path) -> None:
    rows = patients(rng)
    found = [
        prepared(table(write(tmp_path / f"rows.{kind}", rows), client="site"))
        for kind in ("csv", "parquet", "jsonl")
    ]
    for train, test, info in found[1:]:
        assert info == found[0][2]
        for ours, first in ((train, found[0][0]), (test, found[0][1])):
            assert list(ours) == list(first)
            for name in ours:
                torch.testing.assert_close(ours[name], first[name], rtol=0, atol=0)


def test_types_are_inferred_and_said(rng: np.random.Generator, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", patients(rng))
    found = table(path, client="site")
    _, test, info = prepared(found)
    assert found.task == info.task == "classification"
    assert info.class_names == ("0", "1")
    assert info.numeric[:2] == ("age", "ward")
    assert info.categories == {"smokes": 4}
    assert set(np.unique(found.train.keys)) == {"north", "south"}  # type: ignore[arg-type]
    assert set(test) == {"numeric", "category", "label"}
    assert found.notes == (
        f"{path}: 60 rows",
        "  numbers: age, ward",
        "  categories: smokes (2)",
        "  target: sick (classification)",
        "  clients: site (2)",
    )


def test_columns_can_be_named_otherwise(rng: np.random.Generator, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", patients(rng))
    found = table(
        path, target="age", ignore=["sick"], categories=["ward"], text="note", bad_rows="skip"
    )
    train, _, info = prepared(found)
    assert found.task == "regression"
    assert info.categories == {"smokes": 4, "site": 4, "ward": 5}
    assert info.vocabulary[2:4] == ("number", "patient")
    assert set(train) == {"category", "tokens", "tokens_length", "target"}
    assert info.target_mean == pytest.approx(train["target"].double().mean().item())


def test_a_test_file_is_prepared_like_the_training_file(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.csv", patients(rng))
    new = patients(rng, 25)
    new[3][1] = "sometimes"  # unseen
    found = table(path, test=str(write(tmp_path / "new.parquet", new)), client="site")
    assert (len(found.train), len(found.test)) == (60, 25)
    _, test, _ = prepared(found)
    assert test["category"][3].tolist() == [0]


def test_test_rows_are_drawn_from_each_client_and_class(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.csv", patients(rng, 600))
    found, again = table(path, client="site"), table(path, client="site")
    assert len(found.test) == 120
    np.testing.assert_array_equal(found.test.numbers, again.test.numbers)  # type: ignore[arg-type]
    assert (found.test.keys == "south").sum() in (39, 40, 41)


def test_bad_rows_are_counted_where_they_are_to_be_skipped(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    rows = patients(rng)
    rows[7][0] = "old"
    rows[9][5] = None
    path = write(tmp_path / "rows.csv", rows)
    message = failure(path)
    assert f"{path}, row 8, column age: 'old' is no finite number (2 such rows)" in message
    assert "name it in data.categories" in message
    assert "data.categories" not in failure(write(tmp_path / "target.csv", rows[9:]))
    found = table(path, bad_rows="skip")
    assert len(found.train) + len(found.test) == 58
    assert found.notes[-1] == (
        f"  2 bad rows left out; the first: {path}, row 8, column age: 'old' is no finite number"
    )
    numbers = np.concatenate([found.train.numbers, found.test.numbers])  # type: ignore[arg-type]
    assert set(range(1, 61)) - set(numbers.tolist()) == {8, 10}


def test_broken_lines_are_named(rng: np.random.Generator, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", patients(rng))
    lines = path.read_text().splitlines()
    lines[5] = "1,2"
    path.write_text("\n".join(lines))
    assert f"{path}, row 5: 2 cells where the header has 6" in failure(path)
    assert len(table(path, bad_rows="skip").train.numbers) < 60  # type: ignore[arg-type]
    path = write(tmp_path / "rows.jsonl", patients(rng))
    path.write_text(path.read_text() + "{nonsense\n")
    assert f"{path}, row 61: " in failure(path)


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no such target": ({"target": "sik"}, ["data.target=sik", "no such column", "'sick'"]),
    "no such client": ({"client": "sites"}, ["data.client=sites", "'site'"]),
    "no such ignored": ({"ignore": ["notes"]}, ["data.ignore=notes", "'note'"]),
    "sentences": ({"ignore": []}, ["column note", "60 different words", "data.text=note"]),
    "nothing left": (
        {"ignore": ["note", "age", "smokes", "site", "ward"]},
        ["beside data.target=sick no column is left"],
    ),
    "words in a text column": (
        {"text": "ward", "ignore": ["note"]},
        ["column ward: it holds int64, not texts"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_keys_that_do_not_fit_the_columns_are_refused(
    rng: np.random.Generator, tmp_path: Path, case: str
) -> None:
    changes, words = REFUSED[case]
    path = write(tmp_path / "rows.parquet", patients(rng))
    message = failure(path, **changes)
    for word in (str(path), *words):
        assert word in message


def test_a_missing_column_of_the_test_file_is_named(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.csv", patients(rng))
    new = write(tmp_path / "new.csv", [row[1:] for row in patients(rng)], HEADER[1:])
    message = failure(path, test=str(new))
    assert f"{new} has no column age, which the training data has" in message
    assert "age" in message


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    for name, content, words in (
        ("rows.xlsx", "PK", [".csv, .parquet, .jsonl"]),
        ("rows.parquet", "not parquet", ["no Parquet file"]),
        ("rows.csv", "", ["no CSV file"]),
        ("rows.jsonl", "", ["holds no rows"]),
        ("twice.csv", "a,a\n1,2\n", ["two columns a"]),
    ):
        path = tmp_path / name
        path.write_text(content)
        message = failure(path)
        for word in (str(path), *words):
            assert word in message
    message = failure(tmp_path / "nowhere.csv")
    assert f"data.path={tmp_path / 'nowhere.csv'}: there is no such file" in message
    assert "Set data.path" in message


@pytest.mark.parametrize("delimiter", [";", r"\t", "|"])
def test_other_delimiters_and_encodings_are_read_or_named(
    delimiter: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    rows = [[*row[:-1], ("ja", "nö")[row[-1]]] for row in patients(rng)]
    usual = write(tmp_path / "usual.csv", rows)
    other = tmp_path / "other.csv"
    character = "\t" if delimiter == r"\t" else delimiter
    text = usual.read_text().replace(",", character)
    other.write_bytes(text.encode("latin-1"))
    message = failure(other)
    usual_typed = typed("data.delimiter", ",")
    assert f"{other}: with {usual_typed} its header is one column, age{character}" in message
    assert f"Set {typed('data.delimiter', delimiter)}." in message
    message = failure(other, delimiter=delimiter)
    first = text.encode("latin-1")[: text.encode("latin-1").index(b"\xf6")].count(b"\n") + 1
    assert f"{other}, line {first}: the byte 0xf6 is no text in data.encoding=utf-8" in message
    assert "such as latin-1" in message
    found = table(other, delimiter=delimiter, encoding="latin-1")
    for split, expected in zip(prepared(found)[:2], prepared(table(usual))[:2], strict=True):
        for name, value in split.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


# --- folders ------------------------------------------------------------------------------


def pictures(rng: np.random.Generator, folder: Path, each: int = 10) -> Path:
    """Write pictures of two classes, of several sizes, modes and formats."""
    for name, colour in (("red", (220, 10, 10)), ("blue", (10, 10, 220))):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            size = tuple(rng.integers(5, 60, 2).tolist())
            picture = Image.new("RGB", size, colour)  # type: ignore[arg-type]
            picture = picture.convert("RGBA") if number % 3 == 0 else picture
            picture.save(folder / name / f"{number}.{('png', 'webp', 'bmp')[number % 3]}")
    return folder


def test_pictures_of_any_size_are_brought_to_one(rng: np.random.Generator, tmp_path: Path) -> None:
    found = images(path=str(pictures(rng, tmp_path / "all")), size=16)
    assert (len(found.train), len(found.test)) == (16, 4)
    train, test, info = prepared(found)
    assert (info.class_names, info.image_shape) == (("blue", "red"), (3, 16, 16))
    column = found.train.columns["image"]
    assert isinstance(column, Values)
    middle = column.values[:, :, 8, 8]
    assert (middle[train["label"] == 1][:, 0] > 200).all()
    assert (middle[train["label"] == 0][:, 2] > 200).all()
    assert test["image"].shape == (4, 3, 16, 16)


def test_a_broken_picture_is_named(rng: np.random.Generator, tmp_path: Path) -> None:
    folder = pictures(rng, tmp_path / "all")
    whole = (folder / "red" / "0.png").read_bytes()
    (folder / "red" / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "blue" / "notes.txt").write_text("no picture, and passed over")
    with pytest.raises(DataError, match=r"red/0\.png: it is no picture.*data\.bad_rows=skip"):
        images(path=str(folder))
    found = images(path=str(folder), bad_rows="skip")
    assert len(found.train) + len(found.test) == 19
    assert "1 bad files left out" in found.notes[-1]


def test_a_class_of_the_test_folder_alone_is_refused(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    train, test = pictures(rng, tmp_path / "train"), pictures(rng, tmp_path / "test", 3)
    keys: dict[str, Any] = {"path": str(train), "test": str(test), "channels": 1}
    assert len(images(**keys).test) == 6
    (test / "red").rename(test / "green")
    with pytest.raises(DataError, match=r"data\.test=.* has the class green"):
        images(**keys)


def test_texts_by_class(tmp_path: Path) -> None:
    for name, word in (("good", "fine"), ("bad", "poor")):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.txt").write_text(f"This is {word}, says {number}.")
    found = texts(path=str(tmp_path))
    _, test, info = prepared(found)
    assert info.class_names == ("bad", "good")
    assert "fine" in info.vocabulary
    assert test["label"].tolist() == [0, 1]
    (tmp_path / "good" / "7.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"good/7\.txt: the text is empty"):
        texts(path=str(tmp_path))


def test_texts_without_classes_are_streams_of_one_client_each(tmp_path: Path) -> None:
    for name, text in (("long", "abcdefghij" * 10), ("short", "xyz")):
        (tmp_path / f"{name}.txt").write_text(text)
    found = texts(path=str(tmp_path), length=10)
    assert found.task == "next_token"
    assert found.train.keys is not None
    assert found.train.keys.tolist() == ["long"] * 8 + ["short"]
    assert found.test.keys.tolist() == ["long"] * 2  # type: ignore[union-attr]
    train, _, info = prepared(found)
    assert train["tokens_length"].tolist() == [10] * 8 + [2]
    first = "".join(info.vocabulary[token] for token in train["next"][0].tolist())
    assert first == "bcdefghija"


# --- arrays -------------------------------------------------------------------------------


def test_arrays_of_images_and_of_numbers(rng: np.random.Generator, tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    np.savez(
        path,
        x=rng.integers(0, 256, (50, 8, 8), dtype=np.uint8),
        rows=rng.normal(size=(50, 3)),
        y=rng.permutation(np.arange(50) % 12),  # each of them occurs
        amount=rng.normal(size=50),
        who=rng.integers(0, 4, 50),
    )
    found = arrays(path=str(path), client="who")
    train, _, info = prepared(found)
    assert info.image_shape == (1, 8, 8)
    assert info.class_names == tuple(str(n) for n in range(12))[: len(info.class_names)]
    assert train["image"].shape == (40, 1, 8, 8)
    found = arrays(path=str(path), input="rows", target="amount")
    train, _, info = prepared(found)
    assert (found.task, info.numeric) == ("regression", ("rows0", "rows1", "rows2"))
    assert train["numeric"].shape == (40, 3)
    for changes, words in (
        ({"input": "z"}, "data.input=z: .* no such array. It has x, rows, y"),
        ({"input": "y"}, "y is int64 of the shape"),
        ({"target": "rows"}, r"rows has the shape \(50, 3\); expected \(50,\)"),
        ({"test": str(tmp_path / "none.npz")}, "none.npz: there is no such file"),
    ):
        with pytest.raises(DataError, match=words):
            arrays(**{"path": str(path), **changes})


def test_columns_of_one_length_only() -> None:
    with pytest.raises(ValueError, match="of one length"):
        Raw({"a": Values(np.ones(3)), "b": Texts(["x"])})
    assert Strings.of(["b", None, "a"]).codes.tolist() == [1, -1, 0]


# --- new rows for a trained model ---------------------------------------------------------


def preparation_of(found: Unprepared) -> Preparation:
    statistics = Statistics.of(found.steps, found.train, "training")
    return Preparation.of(found.steps, statistics, "training", found.task)


def test_new_rows_of_a_table_are_prepared_like_those_of_training(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    rows = patients(rng)
    preparation = preparation_of(table(write(tmp_path / "rows.csv", rows), client="site"))
    whole = read_new_rows(write(tmp_path / "new.jsonl", rows[:20]), preparation)
    without = [row[:5] for row in rows[:20]]
    bare = read_new_rows(write(tmp_path / "new.parquet", without, HEADER[:5]), preparation)
    assert whole.names == bare.names == tuple(str(number) for number in range(1, 21))
    one, other = (preparation.apply(new.raw).take(torch.arange(20)) for new in (whole, bare))
    assert set(one) == set(other)  # what is to be predicted is not read
    torch.testing.assert_close(one["numeric"], other["numeric"], rtol=0, atol=0)
    without[4][0] = "old"
    bad = write(tmp_path / "bad.csv", without, HEADER[:5])
    with pytest.raises(DataError, match=r"bad\.csv, row 5, column age: 'old' is no finite number"):
        read_new_rows(bad, preparation)
    skipped = read_new_rows(bad, preparation, skip_bad=True)
    assert (len(skipped.names), len(skipped.left_out)) == (19, 1)
    assert "5" not in skipped.names
    lacking = write(tmp_path / "lacking.csv", [row[1:] for row in rows], HEADER[1:])
    with pytest.raises(DataError, match=r"lacking\.csv has no column age, which the"):
        read_new_rows(lacking, preparation)


def test_new_pictures_and_texts(rng: np.random.Generator, tmp_path: Path) -> None:
    folder = pictures(rng, tmp_path / "all")
    preparation = preparation_of(images(path=str(folder), size=9))
    new = read_new_rows(folder, preparation)
    assert len(new.names) == 20
    assert preparation.apply(new.raw).take(torch.arange(20))["image"].shape == (20, 3, 9, 9)
    assert read_new_rows(Path(new.names[3]), preparation).names == new.names[3:4]
    with pytest.raises(DataError, match=r"rows\.csv holds none of the files \*\.png"):
        read_new_rows(write(tmp_path / "rows.csv", patients(rng)), preparation)
    with pytest.raises(DataError, match="no such file or folder"):
        read_new_rows(tmp_path / "nowhere", preparation)
    words = preparation_of(
        table(
            write(tmp_path / "notes.csv", patients(rng)),
            text="note",
            ignore=["age", "smokes", "site", "ward"],
        )
    )
    (tmp_path / "one.txt").write_text("Patient number 7 was seen.")
    note = read_new_rows(tmp_path / "one.txt", words)
    assert words.apply(note.raw).take(torch.arange(1))["tokens_length"].tolist() == [6]
