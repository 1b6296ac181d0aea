"""New rows for a trained model are prepared like those it was trained with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from heliotrope.data.sources.folders import images
from heliotrope.data.sources.new_rows import read_new_rows
from heliotrope.errors import DataError
from tests.own_files import HEADER, patients, pictures, preparation_of, table, write


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
