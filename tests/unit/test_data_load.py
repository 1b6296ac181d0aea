"""What `load` gives: the splits, their scaling, and the errors a user can meet on the way."""

from __future__ import annotations

import gzip
import re
import secrets
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from heliotrope.config import DataConfig, chosen
from heliotrope.data import Dataset, Examples, Info, load
from heliotrope.data.loading import _validation_indices
from heliotrope.data.sources.collect import Source, collect
from heliotrope.data.sources.images import FASHION_MNIST, MNIST
from heliotrope.errors import DataError
from tests.support import everything, values_of

CLASSES = 10


@pytest.fixture
def run_seed() -> int:
    seed = secrets.randbits(32)
    print(f"run seed: {seed}")  # shown by pytest on failure
    return seed


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


@pytest.fixture
def folder(tmp_path: Path, run_seed: int) -> Path:
    """Write a little MNIST: 300 + 50 random images; the test images are much darker."""
    rng = np.random.default_rng(run_seed)
    for prefix, count, brightest in (("train", 300, 255), ("t10k", 50, 20)):
        images = rng.integers(0, brightest + 1, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, CLASSES, count, dtype=np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", labels)
    return tmp_path


def config(folder: Path, **changes: object) -> DataConfig:
    cfg: DataConfig = chosen("data", **{"name": "mnist", "dir": str(folder), **changes})
    return cfg


def images(split: Examples) -> torch.Tensor:
    return everything(split)["image"]


def labels(split: Examples) -> torch.Tensor:
    return everything(split)["label"]


def rows(split: Examples) -> set[bytes]:
    return {example.numpy().tobytes() for example in images(split)}


def same(a: Examples, b: Examples) -> bool:
    return torch.equal(images(a), images(b)) and torch.equal(labels(a), labels(b))


def test_contents_and_types(folder: Path, run_seed: int) -> None:
    data = load(config(folder, fit="none"), run_seed)
    pixels = np.frombuffer((folder / "train-images-idx3-ubyte").read_bytes()[16:], dtype=np.uint8)
    digits = np.frombuffer((folder / "train-labels-idx1-ubyte").read_bytes()[8:], dtype=np.uint8)
    assert data.name == "mnist"
    assert data.info == Info(class_names=tuple("0123456789"), image_shape=(1, 28, 28))
    assert [len(data.train), len(data.validation), len(data.test)] == [300, 0, 50]
    for split in (data.train, data.validation, data.test):
        assert (images(split).dtype, labels(split).dtype) == (torch.float32, torch.int64)
        assert images(split).shape == (len(split), 1, 28, 28)
        assert labels(split).shape == (len(split),)
        assert split.keys is None
        assert values_of(split, "image").dtype == torch.uint8, "a byte a pixel until the batch"
    expected = pixels.reshape(300, 1, 28, 28) / 255
    np.testing.assert_allclose(images(data.train).numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(labels(data.train).numpy(), digits)


def test_gzipped_files_give_the_same(folder: Path, run_seed: int) -> None:
    plain = load(config(folder), run_seed)
    for path in list(folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()
    packed = load(config(folder), run_seed)
    assert same(plain.train, packed.train)
    assert same(plain.test, packed.test)


def test_normalisation_uses_the_training_split_alone(folder: Path, run_seed: int) -> None:
    plain = load(config(folder, validation_fraction=0.3, fit="none"), run_seed)
    scaled = load(config(folder, validation_fraction=0.3), run_seed)
    reference = images(plain.train).double()
    mean, std = reference.mean(), reference.std(correction=0)
    for name in ("train", "validation", "test"):
        expected = (images(getattr(plain, name)).double() - mean) / std
        found = images(getattr(scaled, name)).double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert images(scaled.test).mean() < -1  # the darker test images keep their own brightness


def test_validation_split_is_drawn_from_training_by_the_run_seed(
    folder: Path, run_seed: int
) -> None:
    def take(fraction: float, seed: int) -> Dataset:
        return load(config(folder, validation_fraction=fraction, fit="none"), seed)

    whole, first, again, other = (
        take(0, run_seed),
        take(0.25, run_seed),
        take(0.25, run_seed),
        take(0.25, run_seed + 1),
    )
    assert (len(first.train), len(first.validation)) == (225, 75)
    assert rows(first.train) | rows(first.validation) == rows(whole.train)
    assert not rows(first.train) & rows(first.validation)
    assert same(first.validation, again.validation)
    assert same(first.train, again.train)
    assert rows(first.validation) != rows(other.validation)
    assert same(first.test, other.test)
    assert same(first.test, whole.test)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_validation_fraction_that_empties_a_split_is_refused(
    folder: Path, run_seed: int, fraction: float
) -> None:
    with pytest.raises(DataError, match=f"data.validation_fraction={fraction} of 300"):
        load(config(folder, validation_fraction=fraction), run_seed)


@pytest.mark.parametrize("examples", [1, 2, 3, 10, 300, 70_000])
@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_the_validation_fraction_that_is_advised_divides_the_examples(
    examples: int, fraction: float
) -> None:
    with pytest.raises(DataError) as caught:
        _validation_indices(examples, fraction, 0)
    advised = re.search(r"Set it to (\S+), or to 0\.$", str(caught.value))
    if examples == 1:
        assert str(caught.value).endswith("Set it to 0.")
        return
    assert advised is not None
    assert len(_validation_indices(examples, float(advised[1]), 0)) in (1, examples - 1)


def test_images_and_labels_that_do_not_match_are_refused(folder: Path, run_seed: int) -> None:
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(299, dtype=np.uint8))
    with pytest.raises(DataError, match=r"train-images.* 300 images and .*train-labels.* 299 lab"):
        load(config(folder), run_seed)


def test_label_out_of_range_is_refused(folder: Path, run_seed: int) -> None:
    labels = np.zeros(50, dtype=np.uint8)
    labels[[17, 20]] = 10
    write_idx(folder / "t10k-labels-idx1-ubyte", labels)
    with pytest.raises(DataError, match=r"t10k-labels.*label 10 at position 17 \(2 such"):
        load(config(folder), run_seed)


def test_images_of_another_size_are_refused(folder: Path, run_seed: int) -> None:
    write_idx(folder / "t10k-images-idx3-ubyte", np.zeros((50, 32, 32), dtype=np.uint8))
    with pytest.raises(DataError, match=r"t10k-images.*50x32x32.*Nx28x28"):
        load(config(folder), run_seed)


def test_constant_images_cannot_be_normalised(folder: Path, run_seed: int) -> None:
    write_idx(folder / "train-images-idx3-ubyte", np.full((300, 28, 28), 51, dtype=np.uint8))
    with pytest.raises(DataError, match=r"all hold one value, 0\.2.*data\.fit=none"):
        load(config(folder), run_seed)
    load(config(folder, fit="none"), run_seed)


def test_unknown_name_suggests_the_closest(run_seed: int) -> None:
    with pytest.raises(DataError, match=r"data\.name=fashion-mnist .*Did you mean 'fashion_mnist'"):
        load(DataConfig(name="fashion-mnist"), run_seed)


# --- digits -------------------------------------------------------------------------------


def test_digits_has_one_stratified_test_split_for_all_seeds(run_seed: int) -> None:
    cfg = chosen("data", "digits", validation_fraction=0.1, fit="none")
    one, two = load(cfg, run_seed), load(cfg, run_seed + 1)
    assert one.info == Info(class_names=tuple("0123456789"), image_shape=(1, 8, 8))
    assert same(one.test, two.test)
    assert not same(one.validation, two.validation)
    total = len(one.train) + len(one.validation) + len(one.test)
    assert total == 1797
    every = torch.cat([labels(one.train), labels(one.validation), labels(one.test)])
    in_test = torch.bincount(labels(one.test)) / torch.bincount(every)
    assert ((in_test > 0.19) & (in_test < 0.21)).all()
    assert not rows(one.test) & (rows(one.train) | rows(one.validation))
    assert (images(one.train).min().item(), images(one.train).max().item()) == (0, 1)


# --- the real files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "first_labels", "mean", "std"),
    [(MNIST, [5, 0, 4, 1, 9], 0.1307, 0.3081), (FASHION_MNIST, [9, 0, 0, 3, 0], 0.2860, 0.3530)],
    ids=["mnist", "fashion_mnist"],
)
def test_the_real_files_have_their_published_statistics(
    source: Source, first_labels: list[int], mean: float, std: float
) -> None:
    try:
        collect(source, None, download=False)
    except DataError:
        pytest.skip(f"needs {source.name}, to be had with: {source.commands()[0]}")
    data = load(chosen("data", source.name, download=False, fit="none"), 0)
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert labels(data.train)[:5].tolist() == first_labels
    assert torch.bincount(labels(data.test)).min() > 800
    assert images(data.train).mean().item() == pytest.approx(mean, abs=1e-4)
    assert images(data.train).std().item() == pytest.approx(std, abs=1e-4)


@pytest.mark.parametrize(
    ("trained", "other"), [("mnist", "fashion_mnist"), ("fashion_mnist", "mnist")]
)
def test_a_model_of_other_classes_is_not_evaluated(trained: str, other: str, folder: Path) -> None:
    preparation = load(config(folder, name=trained), 0).preparation
    with pytest.raises(
        DataError, match=r"is none that the model was trained with: .* The data has"
    ):
        load(config(folder, name=other), 0, preparation)


def test_rows_that_leave_none_for_testing_are_refused_with_what_helps(tmp_path: Path) -> None:
    file = tmp_path / "two.csv"
    file.write_text("a,b\n1,2\n3,4\n")
    table = {"path": str(file), "target": "b"}
    with pytest.raises(DataError, match=r"data.test_fraction=0.2 of 2 row\(s\) is none. Add rows"):
        load(chosen("data", "table", **table), 0)
    found = load(chosen("data", "table", test_fraction=0.5, **table), 0)
    assert (len(found.train), len(found.test)) == (1, 1)
