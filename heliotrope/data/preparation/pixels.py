"""Images: bytes until a batch is taken, then numbers around 0."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.config.data import Fit
from heliotrope.data.columns import Raw, Values
from heliotrope.data.fields import Affine, Batch, Dense, Field, Rows
from heliotrope.data.info import Info
from heliotrope.data.mapped import Mapped, MappedRows
from heliotrope.data.preparation.base import Fitted, Grouped, Groups, Kind, Step
from heliotrope.data.preparation.moments import Bounds, Scale, pixel_moments
from heliotrope.data.preparation.sums import PixelSums
from heliotrope.errors import DataError

__all__ = ["FittedPixels", "OwnPixels", "Pixels"]


@dataclass(frozen=True)
class Pixels(Step):
    """Scale the bytes of the column `image`, [N, *shape], to numbers around 0.

    Parameters
    ----------
    shape
        (channels, height, width).
    white
        The byte that stands for 1.0.
    """

    shape: tuple[int, ...]
    white: float = 255.0
    column: str = "image"

    # Rows of no training client take those of all.
    measured_for: ClassVar[tuple[Fit, ...]] = ("training", "per_client")
    fixed_size: ClassVar[bool] = True

    @property
    def told(self) -> str:
        return "mean and deviation of the pixels"

    def measure(self, raw: Raw) -> PixelSums:
        sums = map(PixelSums.of, _blocks(raw, self.column, self.shape))
        return reduce(operator.add, sums, PixelSums(0, 0, 0))

    def fitted(self, statistic: PixelSums | None) -> FittedPixels:
        if statistic is None:
            return FittedPixels(self.column, self.shape, 0.0, self.white)
        mean, deviation = statistic.mean(), statistic.deviation()
        if deviation == 0:
            raise DataError(
                f"The pixels of the training images all hold one value, {mean / self.white:g}: "
                "their standard deviation is 0. Check the files, or set data.fit=none."
            )
        return FittedPixels(self.column, self.shape, mean, deviation)

    def by_group(self, statistic: PixelSums) -> OwnPixels:
        mean, deviation = statistic.mean(), statistic.deviation()
        return OwnPixels(self.column, self.shape, mean, deviation or 1.0)

    def bounds(self) -> dict[str, Bounds | None]:
        return {self.column: (0.0, self.white)}

    def moments(self, raw: Raw, bounds: Sequence[Bounds]) -> NDArray[np.float64]:
        blocks = _blocks(raw, self.column, self.shape)
        return np.concatenate([pixel_moments(block, *bounds) for block in blocks])

    def scaled(self, scales: Sequence[Scale]) -> FittedPixels:
        (scale,) = scales
        return FittedPixels(self.column, self.shape, scale.mean, scale.deviation)


@dataclass(frozen=True)
class FittedPixels(Fitted):
    """``(byte - mean) / deviation``."""

    column: str
    shape: tuple[int, ...]
    mean: float
    deviation: float

    kind: ClassVar[str] = "pixels"

    def reads(self) -> Mapping[str, Kind]:
        return {self.column: "image"}

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        scale = 1 / self.deviation
        images, scaled = _images(raw, self.column, self.shape), Affine(scale, -self.mean * scale)
        if isinstance(images, MappedRows):
            return {self.column: Mapped(images, scaled)}
        return {self.column: Dense(images.values, scaled)}

    def describe(self, info: Info) -> Info:
        return replace(info, image_shape=self.shape)


@dataclass(frozen=True)
class OwnPixels(Fitted):
    """``(byte - mean) / deviation`` by the mean and deviation of each group of training rows.

    `mean` and `deviation` are those of all training rows, for rows of no group of theirs.
    """

    column: str
    shape: tuple[int, ...]
    mean: float
    deviation: float

    kind: ClassVar[str] = "own_pixels"

    def reads(self) -> Mapping[str, Kind]:
        return {self.column: "image"}

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        return FittedPixels(self.column, self.shape, self.mean, self.deviation).fields(raw)

    def grouped(self, raw: Raw, groups: Groups, known: Grouped) -> Mapping[str, Field]:
        images = _pixels(raw, self.column, self.shape)
        known_images = images if known.raw is raw else _pixels(known.raw, self.column, self.shape)
        scales = np.full(int(groups.max(initial=-1)) + 1, 1 / self.deviation, dtype=np.float32)
        shifts = (-self.mean * scales).astype(np.float32)
        for group, rows in known.of(groups):
            sums = PixelSums.of(known_images[rows])
            scales[group] = 1 / (sums.deviation() or self.deviation)  # of one grey, that of all
            shifts[group] = -sums.mean() * scales[group]
        return {self.column: _Grouped(*map(torch.tensor, (images, groups, scales, shifts)))}

    def describe(self, info: Info) -> Info:
        return replace(info, image_shape=self.shape)


@dataclass(frozen=True, eq=False)
class _Grouped:
    """Images [N, ...] in bytes that each group of rows has its own scale and shift for, [G]."""

    images: Tensor
    groups: Tensor
    scales: Tensor
    shifts: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def fixed(self) -> bool:
        return True

    def take(self, name: str, indices: Tensor) -> Batch:
        groups = self.groups[indices]
        per_image = (*indices.shape, *[1] * (self.images.dim() - 1))
        scales, shifts = self.scales[groups].view(per_image), self.shifts[groups].view(per_image)
        return {name: self.images[indices].to(torch.float32).mul_(scales).add_(shifts)}

    def blank(self, name: str) -> Batch:
        return {name: torch.zeros(1, *self.images.shape[1:], device=self.device)}

    def to(self, device: torch.device) -> _Grouped:
        values = (self.images, self.groups, self.scales, self.shifts)
        return _Grouped(*(value.to(device) for value in values))

    def subset(self, rows: Rows) -> _Grouped:
        return _Grouped(self.images[rows], self.groups[rows], self.scales, self.shifts)


def _pixels(raw: Raw, column: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return all images of a column that is in memory."""
    found = _images(raw, column, shape)
    if isinstance(found, MappedRows):
        raise DataError(
            f"{raw.origin}: its images stay in their file, but data.fit=per_client needs those of "
            "a client in memory. Set data.fit=training, or bring them in an .npz file."
        )
    return found.values


def _blocks(raw: Raw, column: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
    """Yield all images of a column: at once if they are in memory, else some megabytes."""
    found = _images(raw, column, shape)
    yield from found.blocks() if isinstance(found, MappedRows) else [found.values]


def _images(raw: Raw, column: str, shape: tuple[int, ...]) -> Values | MappedRows:
    found = raw.columns[column]
    array = found.values if isinstance(found, Values) else getattr(found, "array", None)
    if not isinstance(found, Values | MappedRows) or array is None or array.dtype != np.uint8:
        raise DataError(f"{raw.origin}: the column {column} holds no pixels in bytes.")
    if array.shape[1:] != shape:
        have, want = ("x".join(map(str, numbers)) for numbers in (array.shape[1:], shape))
        raise DataError(
            f"{raw.origin} holds images of {have} (channels, height, width), but {want} is what "
            "the model takes. Name the dataset that it was trained with, or convert the images."
        )
    return found
