"""Images and numbers in a folder of .npy files: prepared as those of an .npz file, never loaded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heliotrope.data import load
from heliotrope.data.mapped import Mapped
from heliotrope.errors import DataError
from tests.support import compose

_COUNT = 60


def _config(path: Path, *overrides: str) -> Any:
    return compose("federated", "data=arrays", f"data.path={path}", *overrides).data


def _folder(path: Path, **arrays: np.ndarray[Any, Any]) -> Path:
    path.mkdir()
    for name, values in arrays.items():
        np.save(path / f"{name}.npy", values)
    return path


@pytest.mark.parametrize("fit", ["training", "none"])
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 6)])
@pytest.mark.parametrize("words", [False, True])
def test_images_of_a_folder_are_those_of_an_npz_file(
    fit: str, shape: tuple[int, ...], words: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    x = rng.integers(0, 256, (_COUNT, *shape), dtype=np.uint8)
    y: np.ndarray[Any, Any] = rng.integers(0, 12, _COUNT)
    if words:
        y = np.array(["cat", "dog", "owl"])[y % 3]
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    keys = (f"data.fit={fit}", "data.validation_fraction=0.2", "task=classification")
    loaded = load(_config(tmp_path / "rows.npz", *keys), 3, task="classification")
    mapped = load(_config(_folder(tmp_path / "rows", x=x, y=y), *keys), 3, task="classification")
    assert mapped.preparation == loaded.preparation
    assert isinstance(mapped.train.fields["image"], Mapped)
    for name in ("train", "validation", "test"):
        one, other = getattr(loaded, name), getattr(mapped, name)
        rows = torch.from_numpy(rng.permutation(len(one)))
        for again in (other, pickle.loads(pickle.dumps(other))):  # noqa: S301 - our own
            batch = again.take(rows)
            for field, values in one.take(rows).items():
                assert torch.equal(values, batch[field]), field


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("fit", ["training", "none"])
def test_numbers_of_a_folder_are_those_of_an_npz_file(
    dtype: str, fit: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    x = (rng.normal(100, 30, (_COUNT, 3)) % 256).astype(dtype)
    if x.dtype.kind == "f":
        x[rng.random(x.shape) < 0.1] = np.nan
    y = rng.normal(size=_COUNT)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    keys = (f"data.fit={fit}", "data.validation_fraction=0.2")
    loaded = load(_config(tmp_path / "rows.npz", *keys), 3)
    mapped = load(_config(_folder(tmp_path / "rows", x=x, y=y), *keys), 3)
    assert mapped.preparation == loaded.preparation
    assert isinstance(mapped.train.fields["numeric"], Mapped)
    for name in ("train", "validation", "test"):
        rows = torch.from_numpy(rng.permutation(len(getattr(loaded, name))))
        batch = getattr(mapped, name).take(rows)
        for field, values in getattr(loaded, name).take(rows).items():
            assert torch.equal(values, batch[field]), field


@pytest.mark.parametrize(
    ("arrays", "keys", "said"),
    [
        ({}, (), "holds no .npy files"),
        ({"x": np.ones((9, 3), complex)}, (), "expected images in bytes"),
        ({"x": np.ones((9, 3), np.longdouble)}, (), "expected images in bytes"),
        ({"x": np.ones((9, 3, 2))}, (), "or numbers"),
        ({"x": np.full((9, 3), 1e300)}, (), "row 1, column x0: the number is infinite"),
        ({"x": np.ones((9, 2, 2), np.uint8), "y": np.ones(8)}, (), "a value for each row of x"),
        ({"x": np.ones((9, 2, 2), np.uint8)}, ("data.target=z",), "has no such array"),
        ({"x": np.array(3)}, (), "a value for each row of x"),
        (
            {"x": np.eye(9, 4, dtype=np.uint8)[:, None], "k": np.arange(9) % 3},
            ("data.fit=per_client", "data.client=k"),
            "its images stay in their file",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(
    arrays: dict[str, Any], keys: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    if arrays:
        arrays = {"y": np.arange(9) % 2, **arrays}
    path = _folder(tmp_path / "rows", **arrays)
    cfg = _config(path, *keys)
    with pytest.raises(DataError, match=said) as refused:
        load(cfg, 0)
    assert str(path) in str(refused.value)
    assert refused.value.exit_code == 2
