"""The 8x8 handwritten digits that come with scikit-learn: no file to fetch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from heliotrope.data.columns import Raw, Values
from heliotrope.data.preparation import Labels, Pixels
from heliotrope.data.sources.sklearn_files import sklearn_file
from heliotrope.data.sources.unprepared import Unprepared
from heliotrope.errors import DataError

__all__ = ["digits"]

_TEST_EVERY = 5
_WHITE = 16.0
_SHAPE = (1, 8, 8)


def digits() -> Unprepared:
    """1797 handwritten digits of 8x8 pixels, in 10 classes; they come with scikit-learn.

    Images are uint8 ``[N, 1, 8, 8]`` with values 0 to 16.
    The source has one set only. A fifth of each class becomes the test split, the same in every
    run: it depends on no seed, so that runs with different seeds are measured on one test set.

    Source: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.

    Raises
    ------
    DataError
        If scikit-learn is not installed.
    """
    path = sklearn_file("digits", "digits.csv.gz")
    try:
        rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)  # 64 pixels and the label
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Install it anew: pip install scikit-learn"
        ) from error
    labels = rows[:, -1].astype(np.int64)
    test = _every_nth_of_each_class(labels, _TEST_EVERY)
    images = Values(rows[:, :-1].reshape(-1, *_SHAPE))
    examples = Raw({"image": images, "label": Values(labels)}, origin=str(path))
    return Unprepared(
        *examples.parted(test),
        steps=(Pixels(_SHAPE, _WHITE), Labels(tuple(str(digit) for digit in range(10)))),
        task="classification",
        drawn=True,
    )


def _every_nth_of_each_class(targets: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Return a mask of every n-th example of each class, in file order; no generator needed."""
    mask = np.zeros(len(targets), dtype=np.bool_)
    for label in np.unique(targets):
        mask[np.flatnonzero(targets == label)[n // 2 :: n]] = True
    return mask
