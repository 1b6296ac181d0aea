"""Files of scikit-learn's package, read without importing it, which takes almost a second."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from heliotrope.errors import DataError

__all__ = ["sklearn_file"]


def sklearn_file(dataset: str, name: str) -> Path:
    """Return the file `name` of scikit-learn's own data.

    Raises `DataError` if scikit-learn is not installed, or has no such file.
    """
    reason = "it has no such file"
    try:
        path = Path(str(distribution("scikit-learn").locate_file(f"sklearn/datasets/data/{name}")))
        if path.is_file():
            return path
    except PackageNotFoundError as error:
        reason = str(error)
    raise DataError(
        f"data={dataset} comes with scikit-learn, but its file {name} cannot be read ({reason}). "
        "Install it: pip install scikit-learn"
    )
