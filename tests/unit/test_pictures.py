"""Pictures in files become what a person sees of them; hidden files are nobody's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from heliotrope.data.columns import Values
from heliotrope.data.preparation import Preparation, Statistics
from heliotrope.data.sources.folders import images, texts

_EXIF_ORIENTATION = 0x0112


def read(folder: Path, picture: Image.Image, channels: int, size: int = 8, **how: object) -> object:
    """Save a picture twice, read it as training data, and return it, [channels, size, size]."""
    for name in ("0.png", "1.png"):
        (folder / "one").mkdir(exist_ok=True)
        picture.save(folder / "one" / name, **how)  # type: ignore[arg-type]
    found = images(path=str(folder), size=size, channels=channels, test_fraction=0.5)
    column = found.train.columns["image"]
    assert isinstance(column, Values)
    return column.values[0]


def halves(top: int, bottom: int) -> NDArray[np.uint8]:
    return np.repeat(np.array([top, bottom], np.uint8), 4)[:, None].repeat(8, axis=1)


def test_a_picture_stands_as_its_camera_was_held(tmp_path: Path) -> None:
    picture = Image.fromarray(halves(255, 0))
    exif = picture.getexif()
    exif[_EXIF_ORIENTATION] = 6  # to be turned a quarter clockwise: the top becomes the right
    found = read(tmp_path, picture, 1, exif=exif)
    np.testing.assert_array_equal(found, [halves(0, 255).T])


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_the_upper_eight(channels: int, tmp_path: Path) -> None:
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8)
    found = read(tmp_path, Image.fromarray(ramp * 1024 + 255), channels)
    np.testing.assert_array_equal(found, [ramp * 4] * channels)


@pytest.mark.parametrize("size", [8, 4])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_black_shines_through_what_is_transparent(mode: str, size: int, tmp_path: Path) -> None:
    """Whatever colour is hidden there, and whether or not the picture is scaled."""
    white = Image.new("RGBA", (8, 8), (255, 255, 255, 255))
    white.putalpha(Image.fromarray(halves(0, 255)))
    how = {}
    if mode == "P":  # one of two white entries is transparent
        white = Image.fromarray(halves(0, 1))
        white.putpalette([255] * 6)
        how = {"transparency": 0}
    found = read(tmp_path, white if mode == "P" else white.convert(mode), 3, size, **how)
    np.testing.assert_array_equal(found[:, [0, -1], 0], [[0, 255]] * 3)  # type: ignore[index]


def test_half_transparent_is_half_as_bright(tmp_path: Path) -> None:
    found = read(tmp_path, Image.new("RGBA", (8, 8), (200, 100, 50, 128)), 3)
    np.testing.assert_allclose(found[:, 0, 0], [100, 50, 25], atol=1)  # type: ignore[index]


def test_hidden_folders_are_no_classes_and_hidden_files_no_examples(tmp_path: Path) -> None:
    for folder in ("cat", "dog", ".ipynb_checkpoints", "cat/.ipynb_checkpoints"):
        (tmp_path / folder).mkdir()
        for number in range(5):
            Image.new("L", (4, 4), 9).save(tmp_path / folder / f"{number}.png")
    (tmp_path / "dog" / "._0.png").write_bytes(b"\0\5\x16\7")  # as macOS writes them
    found = images(path=str(tmp_path), test=str(tmp_path))
    assert found.notes == (f"{tmp_path}: 10 files of 2 classes: cat, dog",)
    assert len(found.test) == 10


def test_a_class_is_known_by_its_name_in_a_folder_of_other_classes(tmp_path: Path) -> None:
    """As where a run is evaluated on pictures of some of its classes: they are numbered anew."""
    for folder in ("train/ant", "train/bee", "train/cat", "new/bee", "new/cat"):
        (tmp_path / folder).mkdir(parents=True)
        for grey in (9, 90, 200):
            Image.new("L", (4, 4), grey).save(tmp_path / folder / f"{grey}.png")
    trained, new = (images(path=str(tmp_path / name), size=4) for name in ("train", "new"))
    statistics = Statistics.of(trained.steps, trained.train, "training")
    preparation = Preparation.of(trained.steps, statistics, "training", trained.task)
    labels = preparation.apply(new.train).take(torch.arange(len(new.train)))["label"]
    assert labels.unique().tolist() == [1, 2]


def test_a_hidden_folder_does_not_make_classes_of_texts(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "._play.txt").write_bytes(b"\0\5\x16\7\xff")
    (tmp_path / "play.txt").write_text("to be or not to be " * 20)
    assert texts(path=str(tmp_path)).task == "next_token"
