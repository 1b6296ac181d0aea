"""What a dataset is, before (`Raw`) and after (`Split`, `Dataset`) preparation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Dataset", "Raw", "Scaling", "Split"]


# Compared by identity (eq=False): comparing tensors with == has no single truth value.
@dataclass(frozen=True, eq=False)
class Split:
    """Examples ready for a model.

    Parameters
    ----------
    inputs
        float32 ``[N, *input_shape]``.
    targets
        int64 ``[N]``, class indices.
    keys
        The natural group of each example, such as its hospital: ``[N]``, any sortable dtype.
        None if the dataset has no such groups.

    Raises
    ------
    ValueError
        If the lengths differ.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    keys: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.inputs), len(self.targets)}
        lengths |= {len(self.keys)} if self.keys is not None else set()
        if len(lengths) != 1:
            raise ValueError(f"a split's inputs, targets and keys differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Scaling:
    """Inputs in [0, 1] become ``(x - mean) / std``. A model is only as good with its own."""

    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one dataset, prepared alike. `validation` may be empty."""

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    scaling: Scaling = Scaling()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example, without the batch dimension; images are (channels, h, w)."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def num_classes(self) -> int:
        """Number of classes; targets lie in ``[0, num_classes)``."""
        return len(self.class_names)


@dataclass(frozen=True, eq=False)
class Raw:
    """A dataset as its source has it: integers, no validation split taken, nothing scaled.

    Parameters
    ----------
    train_inputs, test_inputs
        uint8 ``[N, *input_shape]``, values in ``[0, scale]``.
    train_targets, test_targets
        int64 ``[N]``, class indices.
    scale
        The value that stands for 1.0.
    class_names
        One for each class, in the order of the indices.
    """

    train_inputs: npt.NDArray[np.uint8]
    train_targets: npt.NDArray[np.int64]
    test_inputs: npt.NDArray[np.uint8]
    test_targets: npt.NDArray[np.int64]
    scale: float
    class_names: tuple[str, ...]
