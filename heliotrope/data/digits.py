"""The 8x8 handwritten digits that come with scikit-learn: no file to fetch."""

from __future__ import annotations

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
    try:
        # Imported here because it takes about a second, which no other dataset should pay.
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            f"data=digits comes with scikit-learn, which cannot be imported ({error}). "
            "Install it: pip install scikit-learn"
        ) from error
    bunch = datasets.load_digits()
    images = np.asarray(bunch.images, dtype=np.uint8).reshape(-1, 1, 8, 8)
    targets = np.asarray(bunch.target, dtype=np.int64)
    test = _every_nth_of_each_class(targets, _TEST_EVERY)
    return Raw(
        train_inputs=images[~test],
        train_targets=targets[~test],
        test_inputs=images[test],
        test_targets=targets[test],
        scale=16.0,
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _every_nth_of_each_class(targets: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.bool_]:
    """Return a mask of every n-th example of each class, in file order; no generator needed."""
    mask = np.zeros(len(targets), dtype=np.bool_)
    for label in np.unique(targets):
        mask[np.flatnonzero(targets == label)[n // 2 :: n]] = True
    return mask
