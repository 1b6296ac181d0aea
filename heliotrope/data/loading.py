"""The table of datasets by name, and `load`."""

from __future__ import annotations

from collections.abc import Callable

from heliotrope.config import DataConfig
from heliotrope.data.dataset import Dataset, Raw, Scaling
from heliotrope.data.digits import load_digits
from heliotrope.data.images import load_fashion_mnist, load_mnist
from heliotrope.data.prepare import prepare
from heliotrope.errors import DataError, closest

__all__ = ["LOADERS", "load"]

# `data.name` -> what reads that dataset from its source.
LOADERS: dict[str, Callable[[DataConfig], Raw]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
}


def load(cfg: DataConfig, run_seed: int, scaling: Scaling | None = None) -> Dataset:
    """Load the dataset `cfg.name`, take its validation split out, and scale it.

    The test split is the dataset's own and never depends on `run_seed`; the validation split
    and the normalisation constants do, unless `scaling` gives these.

    Raises
    ------
    DataError
        If the name is unknown, the files cannot be found or are damaged, or the validation
        split cannot be taken.
    """
    if cfg.name not in LOADERS:
        raise DataError(
            f"data.name={cfg.name} is not one of {', '.join(LOADERS)}.{closest(cfg.name, LOADERS)}"
        )
    return prepare(LOADERS[cfg.name](cfg), cfg, run_seed, scaling)
