"""A user's own folders of pictures and texts, and arrays, and what is said of unfit ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heliotrope.data.columns import Raw, Strings, Texts, Values
from heliotrope.data.sources.arrays import arrays
from heliotrope.data.sources.folders import images, texts
from heliotrope.errors import DataError
from tests.own_files import pictures, prepared


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
    whole = path.read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cannot be read as an \.npz file"):
            arrays(path=str(path))


def test_columns_of_one_length_only() -> None:
    with pytest.raises(ValueError, match="of one length"):
        Raw({"a": Values(np.ones(3)), "b": Texts(["x"])})
    assert Strings.of(["b", None, "a"]).codes.tolist() == [1, -1, 0]
