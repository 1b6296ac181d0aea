"""A user's own tables: what is inferred of them, and what is said of one that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heliotrope.errors import DataError
from heliotrope.shell import typed
from tests.own_files import HEADER, patients, prepared, table, write


def failure(path: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        table(path, **changes)
    return str(caught.value)


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
