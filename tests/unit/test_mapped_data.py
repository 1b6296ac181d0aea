"""Data that stays in its file: the same batches as from memory, and errors that name the file."""

from __future__ import annotations

import mmap
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heliotrope.data import Examples, load, mapped
from heliotrope.data.fingerprint import fingerprint
from heliotrope.data.mapped import Mapped, MappedArray, MappedRows
from heliotrope.data.preparation import from_json
from heliotrope.data.sources.token_stream import token_stream
from heliotrope.errors import DataError
from heliotrope.system.background import read_ahead
from tests.support import compose, fresh_seed


def _config(path: Path, *overrides: str) -> Any:
    given = ("data=token_stream", f"data.path={path}", "model=gpt", *overrides)
    return compose("distributed", *given).data


def _written(path: Path, tokens: np.ndarray[Any, Any]) -> Path:
    if path.suffix == ".npy":
        np.save(path, tokens)
    else:
        tokens.tofile(path)
    return path


@pytest.mark.parametrize("suffix", [".bin", ".npy"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_windows_of_a_file_are_those_of_the_tokens_in_memory(
    suffix: str, dtype: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    length, size = int(rng.integers(1, 9)), int(rng.integers(40, 400))
    tokens = rng.integers(0, 60_000, size).astype(dtype)
    path = _written(tmp_path / f"tokens{suffix}", tokens)
    keys = (f"data.length={length}", "data.vocabulary=60000", f"data.dtype={dtype}")
    dataset = load(_config(path, *keys, "data.test_fraction=0.3"), run_seed=0)

    windows = (size - 1) // length
    used = tokens[: windows * length + 1].astype(np.int64) + 2
    inputs, targets = used[:-1].reshape(windows, length), used[1:].reshape(windows, length)
    tests = int(windows * 0.3)
    assert (len(dataset.train), len(dataset.test)) == (windows - tests, tests)
    for split, first in ((dataset.train, 0), (dataset.test, windows - tests)):
        order = torch.from_numpy(rng.permutation(len(split)))
        rows = (order + first).numpy()
        for again in (split, pickle.loads(pickle.dumps(split))):  # noqa: S301 - our own
            batch = again.take(order)
            assert np.array_equal(batch["tokens"], inputs[rows])
            assert np.array_equal(batch["next"], targets[rows])
            assert batch["next_length"].tolist() == [length] * len(split)


def test_what_passes_between_processes_is_a_path(tmp_path: Path) -> None:
    path = _written(tmp_path / "tokens.bin", np.zeros(1_000_000, np.uint16))
    dataset = load(_config(path, "data.vocabulary=9", "data.length=9"), run_seed=0)
    assert len(pickle.dumps(dataset.train)) < 10_000


def test_any_part_of_rows_is_that_part(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "rows.npy"
    values = rng.integers(0, 256, (50, 3), dtype=np.uint8)
    np.save(path, values)
    column, kept = MappedRows.of(MappedArray.npy(path)), np.arange(50)
    field = Mapped(column, torch.clone)
    for _ in range(6):
        rows: Any = rng.permutation(len(kept))[: int(rng.integers(1, len(kept) + 1))]
        if rng.random() < 0.5:
            rows = slice(int(rng.integers(0, len(kept))), None, int(rng.integers(1, 3)))
        column, kept = column.subset(rows), kept[rows]
        field = field.subset(rows if isinstance(rows, slice) else torch.from_numpy(rows))
        assert np.array_equal(np.concatenate(list(column.blocks())), values[kept])
        every = field.take("x", torch.arange(len(kept)).view(1, -1))["x"]
        assert np.array_equal(every[0], values[kept])


def test_rows_that_come_from_a_disk_are_asked_for_together(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = rng.integers(0, 60_000, 500).astype(np.uint16)
    tokens.tofile(tmp_path / "tokens.bin")
    windows = MappedArray(tmp_path / "tokens.bin", tokens.dtype, (60, 9), 0, (16, 2))
    np.save(tmp_path / "rows.npy", rng.normal(size=(60, 100, 30)))  # of several pages
    rows = MappedArray.npy(tmp_path / "rows.npy")
    waits = iter([0, 0, 5, 6] * 2)  # none at the first read, one at the second
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(mapped, "_disk_waits", lambda: next(waits))
    fetch = mapped._fetch

    def fetched(file: mmap.mmap, start: int, size: int) -> None:
        asked.append((start, start + size))
        fetch(file, start, size)

    monkeypatch.setattr(mapped, "_fetch", fetched)
    for array, first, step, size in ((windows, 0, 16, 18), (rows, rows.offset, 24_000, 24_000)):
        for number in range(4):
            indices = rng.integers(0, 60, int(rng.integers(1, 9)))
            assert np.array_equal(array.read(indices), array.values[indices])
            starts = [first + step * row for row in indices.tolist()] if number > 1 else []
            for start in starts:
                assert any(begin <= start and start + size <= end for begin, end in asked)
            assert len(asked) <= len(set(starts))
            asked.clear()


def test_batches_read_ahead_are_the_batches(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, rng.integers(0, 256, (900, 5_000), dtype=np.uint8))  # several are taken at once
    examples = Examples({"x": Mapped(MappedRows.of(MappedArray.npy(path)), torch.clone)})
    rows = list(torch.split(torch.from_numpy(rng.permutation(900)), 64))
    found = list(examples.batches(rows))
    assert len(found) == len(rows)
    for batch, some in zip(found, rows, strict=True):
        assert torch.equal(batch["x"], examples.take(some)["x"])


def test_what_is_read_ahead_raises_in_its_turn_and_ends_when_closed() -> None:
    made = []

    def items(count: int) -> Any:
        for number in range(count):
            made.append(number)
            yield number
        raise DataError("the file is gone")

    found = read_ahead(items(5))
    assert [next(found) for _ in range(5)] == list(range(5))
    with pytest.raises(DataError, match="the file is gone"):
        next(found)
    made.clear()
    begun = read_ahead(items(1_000))
    assert next(begun) == 0
    begun.close()  # type: ignore[attr-defined]
    assert len(made) < 10, "a thread goes on without anyone who asks"


def test_the_hash_of_the_data_depends_on_what_the_file_holds(tmp_path: Path) -> None:
    tokens = np.arange(100, dtype=np.uint16)
    paths = [_written(tmp_path / f"{name}.bin", tokens) for name in "ab"]
    tokens[random.Random(fresh_seed()).randrange(80)] += 1
    paths.append(_written(tmp_path / "c.bin", tokens))
    a, b, c = (
        fingerprint(token_stream(path=str(path), vocabulary=200, length=9).train) for path in paths
    )
    assert a == b != c


@pytest.mark.parametrize(
    ("name", "content", "keys", "said"),
    [
        ("gone.bin", None, (), "there is no such file"),
        ("odd.bin", b"123", (), "no whole number of tokens"),
        ("few.bin", b"12" * 128, (), "holds 128 tokens, but a window of data.length=128 needs 129"),
        ("type.bin", b"12" * 500, ("data.dtype=uint8",), "data.dtype=uint8 is not one of"),
        ("large.bin", b"\1\0" * 200 + b"\x41\0" * 90, (), "token 200 (counted from 0): found 65"),
        ("cut.npy", "cut", (), "cannot be read as an .npy file"),
        ("no.npy", b"what is this", (), "cannot be read as an .npy file"),
        ("real.npy", np.ones(300), (), "holds float64 [300]; expected tokens of uint16 or uint32"),
        ("flat.npy", np.ones((30, 30), np.uint16), (), "holds uint16 [30, 30]"),
        ("swapped.npy", np.ones(300, ">u2"), (), "in the byte order of another machine"),
    ],
)
def test_a_file_that_is_none_is_named_before_training(
    name: str, content: Any, keys: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif content == "cut":
        np.save(path, np.ones(1_000, np.uint16))
        path.write_bytes(path.read_bytes()[:-500])
    cfg = _config(path, "data.vocabulary=65", "data.test_fraction=0.5", *keys)
    with pytest.raises(DataError) as refused:
        load(cfg, run_seed=0)
    assert refused.value.exit_code == 2
    assert said in str(refused.value)
    assert str(path) in str(refused.value) or "data.dtype" in said


def test_a_file_that_is_gone_later_is_named_where_it_is_read(tmp_path: Path) -> None:
    path = _written(tmp_path / "tokens.bin", np.zeros(1_000, np.uint16))
    dataset = load(_config(path, "data.vocabulary=9", "data.length=9"), run_seed=0)
    sent = pickle.dumps(dataset.train)
    path.write_bytes(b"12" * 30)
    with pytest.raises(DataError, match=r"tokens\.bin cannot be mapped"):
        pickle.loads(sent).take(torch.tensor([0]))  # noqa: S301 - our own


def test_a_preparation_of_tokens_is_read_back(tmp_path: Path) -> None:
    path = _written(tmp_path / "tokens.bin", np.zeros(1_000, np.uint16))
    prepared = load(_config(path, "data.vocabulary=9", "data.length=9"), run_seed=0).preparation
    assert from_json(prepared.to_json()) == prepared
    assert len(prepared.info().vocabulary) == 11
