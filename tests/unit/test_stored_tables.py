"""Tables that stay in files: the same splits as in memory, converted once, and errors that name."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from heliotrope.data import Dataset, load
from heliotrope.data.fingerprint import fingerprint
from heliotrope.data.mapped import Mapped
from heliotrope.data.partition import Partition
from heliotrope.data.sources import parquet_files
from heliotrope.data.sources.table_conversion import ABOUT, ROWS
from heliotrope.data.summary import duplicates, missing_shares, summarize
from heliotrope.errors import DataError
from tests.support import compose


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Convert into a folder of the test, a few rows at a time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet_files, "_MOST_ROWS", 7)
    return tmp_path / "cache" / "heliotrope" / "tables"


def _rows(rng: np.random.Generator, count: int) -> pa.Table:
    def gaps(share: float) -> np.ndarray[Any, Any]:
        gaps: np.ndarray[Any, Any] = rng.random(count) < share
        return gaps

    grade = rng.integers(0, 4, count) / 1.0  # in some blocks all are whole
    grade[rng.integers(0, count)] = 1.5
    words = np.array(["a ", "bb", "c"])[rng.integers(0, 3, count)]
    return pa.table(
        {
            "size": pa.array(rng.normal(0, 9, count), mask=gaps(0.1)),
            "kind": pa.array(words, mask=gaps(0.2)),
            "none": pa.nulls(count),
            "grade": pa.array(grade, mask=gaps(0.1) & (grade != 1.5)),  # a class of its own
            "typed": pa.array([f" {n / 4} " for n in rng.integers(0, 9, count)]),
            "on": pa.array(rng.random(count) < 0.5),
            "site": pa.array([f"s{n}" for n in rng.integers(0, 4, count)]),
            "wide": pa.array(rng.integers(-(2**40), 2**40, count)),
            "real": pa.array(rng.normal(0, 1, count)),
            "sick": pa.array(np.array(["no", "yes", "10"])[rng.integers(0, 3, count)]),
        }
    )


def _files(folder: Path, whole: pa.Table, rng: np.random.Generator) -> Path:
    folder.mkdir(parents=True)
    middle = int(rng.integers(1, whole.num_rows))
    for name, some in (("0", whole.slice(0, middle)), ("1", whole.slice(middle))):
        pyarrow.parquet.write_table(some, folder / f"{name}.parquet", row_group_size=13)
    return folder


def _load(path: Path, *overrides: str, memory: int = 0, seed: int = 3) -> Dataset:
    given = ("data=table", f"data.path={path}", f"data.memory_mib={memory}", *overrides)
    run = compose("federated", *given)
    return load(run.data, seed, task=run.task_name)


_KEYS = ("data.target=sick", "data.client=site", "data.categories=[grade]")


@pytest.mark.parametrize(
    "keys",
    [
        (*_KEYS, "data.validation_fraction=0.2"),
        (*_KEYS, "data.fit=none", "data.ignore=[real]"),
        ("data.target=real", "data.ignore=[site,wide]", "data.validation_fraction=0.1"),
        ("data.target=real", "data.ignore=[site,kind,on,sick]", "data.test=NEW"),
        (
            "data.target=grade",
            "data.categories=[grade]",
            "data.ignore=[site]",
            "data.bad_rows=skip",
        ),
    ],
)
def test_a_table_that_stays_in_files_is_that_in_memory(
    keys: tuple[str, ...], tmp_path: Path, rng: np.random.Generator
) -> None:
    path = _files(tmp_path / "rows", _rows(rng, 150), rng)
    new = f"data.test={_files(tmp_path / 'new', _rows(rng, 40), rng)}"
    keys = tuple(new if key == "data.test=NEW" else key for key in keys)
    if rng.random() < 0.5 and new not in keys:
        keys = (*keys, new)
    loaded, stored = _load(path, *keys, memory=99), _load(path, *keys)
    again = _load(path, *keys)
    assert isinstance(stored.train.fields["numeric"], Mapped)
    assert loaded.preparation == stored.preparation == again.preparation
    assert loaded.notes == stored.notes == again.notes
    assert loaded.info == stored.info
    for name in ("train", "validation", "test"):
        one = getattr(loaded, name)
        rows = torch.from_numpy(rng.permutation(len(one)))
        for split in (getattr(stored, name), pickle.loads(pickle.dumps(getattr(again, name)))):  # noqa: S301 - our own
            assert one.keys is None or np.array_equal(one.keys, split.keys)
            batch = split.take(rows)
            for field, values in one.take(rows).items():
                assert values.dtype == batch[field].dtype
                assert torch.equal(values, batch[field]), (name, field)


def test_files_are_read_once_until_they_change(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _rows(rng, 60)
    path = _files(tmp_path / "rows", whole, rng)
    first = _load(path, *_KEYS)
    assert first.fitting is not None
    with monkeypatch.context() as context:
        context.setattr(parquet_files.ParquetFiles, "blocks", lambda *_: pytest.fail("read again"))
        second = _load(path, *_KEYS)
        assert second.fitting is not None
        assert fingerprint(second.fitting.train) == fingerprint(first.fitting.train)
    changed = whole.set_column(0, "size", pa.array(rng.normal(5, 9, 60)))
    pyarrow.parquet.write_table(changed, path / "0.parquet")
    (path / "1.parquet").unlink()
    third = _load(path, *_KEYS)
    assert third.preparation != first.preparation
    assert third.fitting is not None
    assert fingerprint(third.fitting.train) != fingerprint(first.fitting.train)


def test_what_is_told_of_the_columns_is_what_is_told_in_memory(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    whole = _rows(rng, 80)
    twice = pa.concat_tables([whole, whole.slice(0, int(rng.integers(2, 30)))])
    path = _files(tmp_path / "rows", twice, rng)
    found = []
    for memory in (0, 99):
        fitting = _load(path, *_KEYS, memory=memory).fitting
        assert fitting is not None
        told = [
            (each.name, each.kind, each.missing, each.content if each.kind == "words" else "")
            for each in summarize(fitting.train)
        ]
        inputs = [name for name in fitting.train.columns if name != "sick"]
        same = duplicates(fitting.train, {"test": fitting.test}, inputs, None)
        rows = len(fitting.train)
        everyone = Partition(np.arange(rows), np.array([0, rows // 2, rows]))
        found.append((told, same, missing_shares(fitting.train, everyone).tolist()))
    assert found[0] == found[1]


def test_workers_are_sent_a_path_and_what_rows_are_known_by(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    wide = {f"x{n}": rng.normal(size=2_000) for n in range(40)}
    table = pa.table({**wide, "sick": rng.integers(0, 2, 2_000)})
    train = _load(_files(tmp_path / "rows", table, rng), "data.target=sick").train
    rest = replace(train, fields={"numeric": train.fields["numeric"]})
    assert len(pickle.dumps(rest)) < 2_000 * 8 + 10_000  # which rows, and the scales


def test_bad_rows_are_named_by_file_or_left_out(tmp_path: Path, rng: np.random.Generator) -> None:
    for number, bad in enumerate([(), (3, 9)]):
        whole = _rows(rng, 50)
        targets = whole["sick"].to_pylist()
        for row in bad:
            targets[row] = None
        whole = whole.set_column(whole.num_columns - 1, "sick", pa.array(targets))
        pyarrow.parquet.write_table(whole, tmp_path / f"{number}.parquet")
    with pytest.raises(DataError, match=r"1\.parquet, row 4, column sick: it is empty"):
        _load(tmp_path, *_KEYS)
    for memory in (0, 99):
        found = _load(tmp_path, *_KEYS, "data.bad_rows=skip", memory=memory)
        assert len(found.train) + len(found.test) == 98
        assert "2 bad rows left out; the first: " in found.notes[-1]
        assert found.fitting is not None
        numbers = np.concatenate([found.fitting.train.numbers, found.fitting.test.numbers])  # type: ignore[arg-type]
        assert set(range(1, 101)) - set(numbers.tolist()) == {54, 60}


@pytest.mark.parametrize("memory", [0, 99])
def test_a_table_of_bad_rows_alone_is_refused(memory: int, tmp_path: Path) -> None:
    rows = {"x": [float("inf")] * 10 + [1.0] * 11, "y": [1.5] * 10 + [None] * 11}
    pyarrow.parquet.write_table(pa.table(rows), tmp_path / "0.parquet")
    with pytest.raises(DataError, match=r"no good row. The first: .*row 1, column x"):
        _load(tmp_path, "data.target=y", "data.bad_rows=skip", memory=memory)


def test_a_class_of_bad_rows_alone_is_none(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = _rows(rng, 50)
    targets = ["no", "yes"] * 24 + ["no", "none"]
    size = [1.0] * 49 + [float("inf")]
    for name, values in (("sick", targets), ("size", size)):
        at = whole.schema.get_field_index(name)
        whole = whole.set_column(at, name, pa.array(values))
    pyarrow.parquet.write_table(whole, tmp_path / "0.parquet")
    loaded, stored = (
        _load(tmp_path, *_KEYS, "data.bad_rows=skip", memory=memory) for memory in (99, 0)
    )
    assert stored.info == loaded.info
    rows = torch.arange(len(loaded.train))
    assert torch.equal(stored.train.take(rows)["label"], loaded.train.take(rows)["label"])


def test_numbers_too_large_for_float32_are_named_by_their_file(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = _files(tmp_path / "rows", pa.table({"x": range(20), "y": range(20)}), rng)
    pyarrow.parquet.write_table(pa.table({"x": [1e300] * 9, "y": range(9)}), path / "0.parquet")
    (path / "1.parquet").unlink()
    for memory in (0, 99):
        with pytest.raises(DataError, match=r"0\.parquet, row 1, column x: the number is inf"):
            _load(path, "data.target=y", "data.test_fraction=0.1", memory=memory)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ((*_KEYS, "data.fit=per_client"), r"stays in a file, but data\.fit=per_client and"),
        ((*_KEYS, "data.text=kind"), r"its texts \(data\.text=kind\) are read into memory"),
        (("data.target=sik",), r"data\.target=sik: .* has no such column.* Did you mean 'sick'"),
        (("data.target=sick", "data.test=OTHER"), r"other\.parquet has no column size"),
    ],
)
def test_what_cannot_stay_in_files_is_named(
    keys: tuple[str, ...], said: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = _files(tmp_path / "rows", _rows(rng, 60), rng)
    other = tmp_path / "other.parquet"
    pyarrow.parquet.write_table(pa.table({"sick": ["no"]}), other)
    with pytest.raises(DataError, match=said) as refused:
        _load(path, *(key.replace("OTHER", str(other)) for key in keys))
    assert refused.value.exit_code == 2


def test_damage_is_named(tmp_path: Path, cache: Path, rng: np.random.Generator) -> None:
    path = _files(tmp_path / "rows", _rows(rng, 200), rng)
    file = path / "1.parquet"
    content = bytearray(file.read_bytes())
    sound = bytes(content)
    content[4 : len(content) // 3] = bytes(len(content) // 3 - 4)  # the footer stays as it was
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"1\.parquet is damaged: .*Write it again"):
        _load(path, *_KEYS)
    assert not list(cache.glob("*.part")), "an unfinished conversion is left"
    file.write_bytes(sound)
    _load(path, *_KEYS)
    (records,) = cache.glob("*/rows.bin")
    for made in records.parent.iterdir():  # a disk that was full, or lost power
        whole = made.read_bytes()
        made.write_bytes(whole[:-8] if made == records else whole[: len(whole) // 2])
        with pytest.raises(DataError, match=rf"{records.parent} is damaged .*Remove it"):
            _load(path, *_KEYS)
        made.write_bytes(whole)
    (records.parent / ABOUT).unlink()
    _load(path, *_KEYS)  # is made again
    assert (records.parent / ABOUT).exists()


def test_what_is_converted_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, cache: Path, rng: np.random.Generator, synced: list[Path]
) -> None:
    _load(_files(tmp_path / "files", _rows(rng, 40), rng), *_KEYS)
    *written, part, named = synced
    assert named == cache
    assert part.parent == cache
    assert {path.name for path in written if path.parent == part} >= {ABOUT, ROWS}
