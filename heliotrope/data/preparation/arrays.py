"""Arrays of a user's own dataset, which a model gets as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from heliotrope.config.data import Fit
from heliotrope.data.columns import Items, Raw, Values
from heliotrope.data.fields import Affine, Batch, Dense, Field, Rows
from heliotrope.data.info import Info
from heliotrope.data.preparation.base import Fitted, Kind, Step
from heliotrope.errors import DataError

__all__ = ["Arrays", "FittedArrays", "FittedTargetArrays", "TargetArrays"]

_WHITE = 255.0


@dataclass(frozen=True)
class Arrays(Step):
    """Make a field of the column of its name, [N, *shape]; nothing is fitted.

    Bytes that are read whenever a batch has them become numbers from 0 to 1.
    """

    column: str
    shape: tuple[int, ...]

    measured_for: ClassVar[tuple[Fit, ...]] = ()

    def fitted(self, statistic: None) -> FittedArrays:  # noqa: ARG002 - it needs none
        return FittedArrays(self.column, self.shape)


@dataclass(frozen=True)
class TargetArrays(Arrays):
    """Make the field of what is to be predicted, where it is more than one number an example."""

    def fitted(self, statistic: None) -> FittedTargetArrays:  # noqa: ARG002 - it needs none
        return FittedTargetArrays(self.column, self.shape)


@dataclass(frozen=True)
class FittedArrays(Fitted):
    """Numbers as they are; one an example are a column [N, 1] of the field `numeric`."""

    column: str
    shape: tuple[int, ...]

    kind: ClassVar[str] = "arrays"

    def reads(self) -> Mapping[str, Kind]:
        return {self.column: "array"}

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        found = raw.columns[self.column]
        shape = None
        if isinstance(found, Values | Items):
            shape = found.shape if isinstance(found, Items) else found.values.shape[1:]
        if shape != self.shape:
            got = "no arrays" if shape is None else f"arrays {list(shape)}"
            raise DataError(
                f"{raw.origin}: the column {self.column} holds {got}, but the model was trained "
                f"with arrays {list(self.shape)}. Bring data of that shape."
            )
        if isinstance(found, Items):
            return {self.column: _Reading(found, torch.device("cpu"))}
        assert isinstance(found, Values)
        single = self.column == "numeric" and not self.shape
        return {self.column: Dense(found.values[:, np.newaxis] if single else found.values)}

    def describe(self, info: Info) -> Info:
        if self.column == "image":
            return replace(info, image_shape=self.shape)
        if self.column == "numeric":
            names = tuple(f"x{index}" for index in range(self.shape[0] if self.shape else 1))
            return replace(info, numeric=names)
        return info


@dataclass(frozen=True)
class FittedTargetArrays(FittedArrays):
    """Numbers as they are, which new rows may lack."""

    kind: ClassVar[str] = "target_arrays"
    of_targets: ClassVar[bool] = True

    def describe(self, info: Info) -> Info:
        return info


@dataclass(frozen=True, eq=False)
class _Reading:
    """A field whose values are read from a dataset whenever a batch has them."""

    items: Items
    device: torch.device

    def __len__(self) -> int:
        return len(self.items)

    @property
    def fixed(self) -> bool:
        return True

    def take(self, name: str, indices: Tensor) -> Batch:
        read = self._scaled(name, torch.from_numpy(self.items.read(indices.reshape(-1).tolist())))
        return {name: read.to(self.device).view(*indices.shape, *read.shape[1:])}

    def blank(self, name: str) -> Batch:
        zeros = torch.from_numpy(np.zeros((1, *self.items.shape), self.items.dtype))
        return {name: self._scaled(name, zeros).to(self.device)}

    def to(self, device: torch.device) -> _Reading:
        return replace(self, device=device)

    def subset(self, rows: Rows) -> _Reading:
        chosen = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return replace(self, items=self.items.subset(chosen))

    def _scaled(self, name: str, values: Tensor) -> Tensor:
        if values.dtype == torch.uint8:
            values = Affine(1 / _WHITE, 0.0)(values)
        single = name == "numeric" and not self.items.shape
        return values.unsqueeze(1) if single else values
