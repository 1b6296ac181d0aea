"""The 8x8 handwritten digits that come with scikit-learn: no file to fetch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt

from heliotrope.config import DataConfig
from heliotrope.data.dataset import Raw
from heliotrope.errors import DataError

__all__ = ["load_digits"]

_TEST_EVERY = 5


def load_digits(cfg: DataConfig) -> Raw:
    """Return 1797 images uint8 ``[N, 1, 8, 8]`` with values 0 to 16, in 10 classes.

    The source has one set only. A fifth of each class becomes the test split, the same in every
    run: it depends on no seed, so that runs with different seeds are measured on one test set.

    Source: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.

    Raises
    ------
    DataError
        If scikit-learn is not installed, or `cfg.dir` is set (it would have no effect).
    """
    if cfg.dir is not None:
        raise DataError(
            f"data.dir={cfg.dir} has no effect with data=digits, which comes with scikit-learn. "
            "Remove data.dir."
        )
    rows = _read()
    images = rows[:, :-1].reshape(-1, 1, 8, 8)
    targets = rows[:, -1].astype(np.int64)
    test = _every_nth_of_each_class(targets, _TEST_EVERY)
    return Raw(
        train_inputs=images[~test],
        train_targets=targets[~test],
        test_inputs=images[test],
        test_targets=targets[test],
        scale=16.0,
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _read() -> npt.NDArray[np.uint8]:
    """Return uint8 ``[1797, 65]``: 64 pixels and the label, as scikit-learn's package ships them.

    The file is read without importing scikit-learn, which takes almost a second.
    """
    try:
        path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        return np.loadtxt(Path(str(path)), delimiter=",", dtype=np.uint8)
    except (PackageNotFoundError, OSError) as error:
        raise DataError(
            f"data=digits comes with scikit-learn, but its file cannot be read ({error}). "
            "Install it: pip install scikit-learn"
        ) from error


def _every_nth_of_each_class(targets: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.bool_]:
    """Return a mask of every n-th example of each class, in file order; no generator needed."""
    mask = np.zeros(len(targets), dtype=np.bool_)
    for label in np.unique(targets):
        mask[np.flatnonzero(targets == label)[n // 2 :: n]] = True
    return mask
