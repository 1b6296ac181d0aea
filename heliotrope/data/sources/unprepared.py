"""What a source gives, and how one that has no test split of its own holds one out."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope.data.columns import Raw
from heliotrope.data.preparation import Step

__all__ = ["TEST_FRACTION", "Files", "Unprepared", "held_out", "vendored", "vendored_rows"]

TEST_FRACTION = 0.2
"""What sources of ours hold out that have no test split of their own."""

_VENDORED = Path(__file__).resolve().parent.parent / "vendored"


@dataclass(frozen=True, eq=False)
class Unprepared:
    """A dataset as its source has it, and what makes examples of it.

    Parameters
    ----------
    train, test
        The rows of both splits; a validation split is drawn from `train` later.
    steps
        What makes fields of a batch of the columns, to be fitted to the training rows.
    task
        The task that the data poses: see `heliotrope.data.info.Info`.
    notes
        Lines to be shown: what was inferred, and what was left out.
    drawn
        Whether the test rows were drawn from the same rows as those for training, by `Raw.parted`,
        and could as well be others; not a test set that the data bring.
    files
        A hash of the files that the rows are in, where it is known without reading all of them.
    """

    train: Raw
    test: Raw
    steps: tuple[Step, ...]
    task: str
    notes: tuple[str, ...] = ()
    drawn: bool = False
    files: str | None = None


@dataclass(frozen=True)
class Files:
    """Where a user's rows are, and what becomes of those that cannot be read.

    Parameters
    ----------
    path, test
        The file or folder to train on, and that of the test split; None: a part is held out.
    test_fraction
        How much of `path` is held out, if there is no `test`.
    skip_bad
        Whether rows that cannot be read are left out and counted, rather than refused.
    """

    path: str
    test: str | None
    test_fraction: float
    skip_bad: bool


def held_out(fraction: float, *sorted_by: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Return which of `count` rows a test split has, the same in every run: a mask [N].

    Rows are sorted by the given arrays [N], the first of which matters most, and from then on in
    the order they have; of these, every n-th is taken (systematic sampling). So each group
    of them has its share, and each range of a number.
    """
    order = np.lexsort((np.arange(count), *reversed(sorted_by)))
    steps = np.floor(np.arange(count + 1) * fraction + 0.5)
    mask = np.zeros(count, dtype=np.bool_)
    mask[order] = np.diff(steps) > 0
    return mask


def vendored(name: str) -> Path:
    """Return a file that comes with this package."""
    return _VENDORED / name


def vendored_rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of a vendored file with an object of JSON a line."""
    with gzip.open(vendored(name), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
