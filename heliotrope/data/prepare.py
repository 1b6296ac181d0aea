"""From integers to what a model eats: the validation split and the scaling, once for both modes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from heliotrope.config import DataConfig
from heliotrope.data.dataset import Dataset, Raw, Scaling, Split
from heliotrope.errors import DataError
from heliotrope.seeding import numpy_generator

__all__ = ["prepare"]

_BLOCK = 1024  # examples whose squares are held at once: 3 MiB for 28x28


def prepare(raw: Raw, cfg: DataConfig, run_seed: int, scaling: Scaling | None = None) -> Dataset:
    """Take the validation split out of the training examples and scale every split.

    Inputs become ``x / scale``, and with `cfg.normalize` then ``(x - mean) / std`` where mean
    and std are scalars over all values of the training split, without the validation split;
    a given `scaling`, such as a trained model's own, takes their place.

    Raises
    ------
    DataError
        If `cfg.validation_fraction` leaves no training or no validation example, or the
        training inputs are constant and cannot be normalised.
    """
    inputs, targets = raw.train_inputs, raw.train_targets
    held_out = _validation_indices(len(targets), cfg.validation_fraction, run_seed)
    held_inputs, held_targets = inputs[held_out], targets[held_out]
    if len(held_out):
        kept = np.ones(len(targets), dtype=np.bool_)
        kept[held_out] = False
        inputs, targets = inputs[kept], targets[kept]

    if scaling is None:
        scaling = Scaling(*_mean_std(inputs, raw.scale)) if cfg.normalize else Scaling()
    if scaling.std == 0:
        raise DataError(
            f"The {len(inputs)} training examples of data={cfg.name} all hold one value, "
            f"{scaling.mean:g}: their standard deviation is 0. Check the files, or set "
            "data.normalize=false."
        )

    def split(inputs: npt.NDArray[np.uint8], targets: npt.NDArray[np.int64]) -> Split:
        scaled = torch.from_numpy(inputs).to(torch.float32).div_(raw.scale)
        if scaling != Scaling():
            scaled.sub_(scaling.mean).div_(scaling.std)
        return Split(scaled, torch.from_numpy(targets))

    return Dataset(
        name=cfg.name,
        train=split(inputs, targets),
        validation=split(held_inputs, held_targets),
        test=split(raw.test_inputs, raw.test_targets),
        class_names=raw.class_names,
        scaling=scaling,
    )


def _validation_indices(examples: int, fraction: float, run_seed: int) -> npt.NDArray[np.int64]:
    """Draw ``round(fraction * examples)`` positions, sorted; none for a fraction of 0."""
    count = round(fraction * examples)
    if fraction and not 0 < count < examples:
        raise DataError(
            f"data.validation_fraction={fraction} of {examples} training examples leaves "
            f"{examples - count} for training and {count} for validation; each needs at least "
            f"one. Set it between {1 / examples:.2g} and {1 - 1 / examples:.4g}, or to 0."
        )
    generator = numpy_generator(run_seed, "validation")
    return np.sort(generator.choice(examples, size=count, replace=False))


def _mean_std(values: npt.NDArray[Any], scale: float) -> tuple[float, float]:
    """Return mean and standard deviation of ``values / scale`` over all values.

    Sums are exact integers, so the result depends neither on the block size nor on threads.
    """
    total = squares = 0
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        total += int(block.sum(dtype=np.int64))
        squares += int(np.square(block, dtype=np.int32).sum(dtype=np.int64))
    # n^2 * variance as one integer: no cancellation.
    n = values.size
    return total / n / scale, math.sqrt(n * squares - total * total) / n / scale
