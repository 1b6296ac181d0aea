"""A user's own folder of pictures or texts, by class: FOLDER/CLASS/FILE."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from heliotrope.config.own_files import absent
from heliotrope.data.columns import Column, Raw, Strings, Texts, Values
from heliotrope.data.preparation import Labels, Pixels, Step, Words
from heliotrope.data.sources.pictures import PICTURES, read_image
from heliotrope.data.sources.streams import next_characters
from heliotrope.data.sources.unprepared import Files, Unprepared, held_out
from heliotrope.errors import DataError

__all__ = ["files_in", "images", "read_files", "read_text", "texts"]

_CHANNELS = (1, 3)
_Read = TypeVar("_Read")


def images(
    *,
    path: str,
    test: str | None = None,
    test_fraction: float = 0.2,
    bad_rows: str = "refuse",
    size: int = 32,
    channels: int = 3,
) -> Unprepared:
    """Your own pictures in a folder by class: PATH/CLASS/*.png and so on.

    They become uint8 ``[N, channels, size, size]``: a picture is scaled to fit and put in the
    middle of a black square.

    Parameters
    ----------
    path
        The folder, with a folder of each class.
    test
        Such a folder of test pictures; null: `test_fraction` is held out, always the same.
    test_fraction
        The share of the training data that is held out for testing, if there is no `test`.
    bad_rows
        Whether a picture that cannot be read ends the command (refuse), or is left out and counted
        (skip).
    size
        Height and width that pictures are brought to.
    channels
        1 for grey, 3 for colour.

    Raises
    ------
    DataError
        If there are no classes or no pictures, or one cannot be read; names the file.
    """
    if channels not in _CHANNELS:
        raise DataError(f"data.channels={channels} is not one of 1 (grey), 3 (colour).")
    shape = (channels, size, size)

    def column(pictures: list[NDArray[np.uint8]]) -> dict[str, Column]:
        return {"image": Values(np.stack(pictures))}

    files = Files(path, test, test_fraction, bad_rows == "skip")
    return _by_class(files, PICTURES, lambda path: read_image(path, shape), column, Pixels(shape))


def texts(
    *,
    path: str,
    test: str | None = None,
    test_fraction: float = 0.2,
    bad_rows: str = "refuse",
    vocabulary: int = 5000,
    max_words: int | None = 200,
    length: int = 80,
) -> Unprepared:
    """Your own .txt files in a folder: by class, PATH/CLASS/*.txt, or without classes.

    Without classes, characters are to be continued, and a file is a client: see
    `next_characters`.

    Parameters
    ----------
    path
        The folder, with a folder of each class, or with the files.
    test
        A folder of test texts by class; null: `test_fraction` is held out, always the same.
    test_fraction
        The share of the training data that is held out for testing, if there is no `test`.
    bad_rows
        Whether a text that cannot be read ends the command (refuse), or is left out and counted
        (skip).
    vocabulary
        How many words are known: the most frequent ones.
    max_words
        Words of each text that are read, from its beginning; null: all.
    length
        Characters of a window, without classes.

    Raises
    ------
    DataError
        If there are no texts, or one is empty or no UTF-8; names the file.
    """
    folder = _folder("data.path", path)
    skip_bad = bad_rows == "skip"
    if _classes_in(folder):
        step = Words(vocabulary, max_words)
        files = Files(path, test, test_fraction, skip_bad)
        return _by_class(files, (".txt",), read_text, lambda texts: {"text": Texts(texts)}, step)
    if test is not None:
        raise DataError(
            f"data.test={test} has no place here: of files without classes, the share "
            "data.test_fraction at the end of each is the test split. Remove data.test."
        )
    read, bad = read_files(files_in(folder, (".txt",)), read_text, skip_bad=skip_bad)
    if not read:
        raise DataError(f"data.path={path} holds no .txt files, and no folders of them.")
    named = {file.stem: text for file, text in read}
    found = next_characters(named, length, test_fraction, str(folder))
    said = f"{folder}: {len(named):,} files, {sum(map(len, named.values())):,} characters"
    notes = (said, *_left_out(bad))
    return replace(found, notes=notes)


def read_text(path: Path) -> str:
    """Return a text in UTF-8; raises `ValueError` if it is none, or has under two characters."""
    text = path.read_text(encoding="utf-8")
    if len(text.strip()) < 2:
        raise ValueError("the text is empty")
    return text


def _by_class(
    files: Files,
    endings: tuple[str, ...],
    read: Callable[[Path], _Read],
    column: Callable[[list[_Read]], dict[str, Column]],
    step: Step,
) -> Unprepared:
    """Return the files of both splits, each class a folder; classes are those of training."""
    folder = _folder("data.path", files.path)
    classes = _classes_in(folder)
    if not classes:
        raise DataError(f"data.path={files.path} has no folders: one of each class is expected.")

    def split(folder: Path) -> tuple[Raw, list[str]]:
        paths = [path for name in classes for path in files_in(folder / name, endings)]
        items, bad = read_files(paths, read, skip_bad=files.skip_bad)
        if not items:
            raise DataError(
                f"{folder} holds none of the files {', '.join('*' + e for e in endings)} in the "
                f"folders {', '.join(classes)}."
            )
        codes = [classes.index(path.relative_to(folder).parts[0]) for path, _ in items]
        label = Strings(np.array(codes, dtype=np.int32), tuple(classes))
        columns = column([item for _, item in items])
        return Raw({**columns, "label": label}, origin=str(folder)), _left_out(bad)

    train, bad = split(folder)
    notes = [
        f"{folder}: {len(train):,} files of {len(classes)} classes: {', '.join(classes)}",
        *bad,
    ]
    if files.test is not None:
        test, bad = split(_test_folder(files.test, classes))
        notes += bad
    else:
        label = train.columns["label"]
        assert isinstance(label, Strings)
        mask = held_out(files.test_fraction, label.codes, count=len(train))
        train, test = train.parted(mask)
    steps = (step, Labels(tuple(classes)))
    drawn = files.test is None
    return Unprepared(train, test, steps, "classification", tuple(notes), drawn)


def _folder(key: str, path: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        if not folder.exists():
            raise absent(key, folder, "folder")
        raise DataError(f"{key}={path} is no folder.")
    return folder


def _test_folder(path: str, classes: list[str]) -> Path:
    folder = _folder("data.test", path)
    others = set(_classes_in(folder)) - set(classes)
    if others:
        raise DataError(
            f"data.test={path} has the class {min(others)}, which does not occur in data.path. "
            "Remove it, or train with some of it."
        )
    return folder


def _left_out(bad: list[str]) -> list[str]:
    return [f"  {len(bad):,} bad files left out; the first: {bad[0]}"] if bad else []


def files_in(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Return the files in a folder and its folders that have one of these endings, sorted.

    Hidden ones are left out, and those of hidden folders: notebooks keep copies of files in
    .ipynb_checkpoints, and macOS puts a ._NAME beside each file of a foreign disk.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    return [path for path in found if not any(map(_hidden, path.relative_to(folder).parts))]


def _classes_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not _hidden(p.name))


def _hidden(name: str) -> bool:
    return name.startswith(".")


def read_files(
    paths: Iterable[Path], read: Callable[[Path], _Read], *, skip_bad: bool
) -> tuple[list[tuple[Path, _Read]], list[str]]:
    """Return what could be read, and a line about each file that could not.

    Raises `DataError` about the first of these unless `skip_bad`.
    """
    items, bad = [], []
    for path in paths:
        try:
            items.append((path, read(path)))
        except (OSError, ValueError) as error:
            bad.append(f"{path}: {error}")
    if bad and not skip_bad:
        more = f" ({len(bad):,} such files)" if len(bad) > 1 else ""
        raise DataError(f"{bad[0]}{more}. Remove the file, or set data.bad_rows=skip.")
    if bad and not items:
        raise DataError(f"{bad[0]}, and no other file is good.")
    return items, bad
