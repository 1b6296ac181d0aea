"""Fields: one named thing of all examples, from which a batch takes its part.

Shape legend: N examples in a split, B examples in a batch, A clients in a stack.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Affine", "Batch", "Dense", "Field", "Rows", "array_of", "tensor_of"]

Batch = dict[str, Tensor]
"""Named tensors, [B, ...] each, or [A, B, ...] of a stack."""

Rows = slice | Tensor
"""Which examples: a slice, or int64 positions."""

_WITHOUT_SELECT = (torch.uint16, torch.uint32, torch.uint64)  # torch's slower indexing has them


class Field(Protocol):
    """One field of all examples. Other kinds than those below may be written."""

    def __len__(self) -> int:
        """Return the number of examples."""

    @property
    def device(self) -> torch.device:
        """Where the values are, and the batches will be."""

    @property
    def fixed(self) -> bool:
        """Whether what a batch has of an example is of the same shape in any batch."""

    def take(self, name: str, indices: Tensor) -> Batch:
        """Return what a batch has of this field, which is called `name`.

        `indices` are int64 [B] or [A, B], on the field's device; the tensors are new.
        """

    def blank(self, name: str) -> Batch:
        """Return what a batch of one has of this field, without anything of the data: zeros."""

    def to(self, device: torch.device) -> Field:
        """Return the same field on `device`."""

    def subset(self, rows: Rows) -> Field:
        """Return the field of these examples, in this order; of a slice, without a copy."""


@dataclass(frozen=True)
class Affine:
    """Numbers of any type become float32, ``values * scale + shift``: pixels stay bytes until then.

    Rounded twice at most, the product and the sum.
    """

    scale: float
    shift: float
    _shift: Tensor = field(init=False, repr=False, compare=False)  # made once: a batch takes 20 us

    def __post_init__(self) -> None:
        object.__setattr__(self, "_shift", torch.tensor(self.shift))

    def __call__(self, values: Tensor) -> Tensor:
        """Return float32 of the shape of `values`."""
        numbers = values.to(torch.float32)
        out = None if numbers is values else numbers  # in place: memory that is new is slow
        return torch.add(self._shift, numbers, alpha=self.scale, out=out)


class Dense(Field):
    """One value or array an example.

    Parameters
    ----------
    values
        [N, ...] of any type, also memory-mapped.
    transform
        What a batch goes through when it is taken, such as `Affine`: it treats each example
        alike, and must be picklable.
    """

    def __init__(
        self,
        values: Tensor | NDArray[Any],
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.values = tensor_of(values)
        self.transform = transform
        self._selects = self.values.dtype not in _WITHOUT_SELECT

    def __len__(self) -> int:
        return len(self.values)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (array_of(self.values), self.transform)

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def fixed(self) -> bool:
        return True

    def take(self, name: str, indices: Tensor) -> Batch:
        if indices.dim() > 1:
            flat = self.take(name, indices.reshape(-1))[name]
            return {name: flat.view(*indices.shape, *flat.shape[1:])}
        found = self.values.index_select(0, indices) if self._selects else self.values[indices]
        return {name: found if self.transform is None else self.transform(found)}

    def blank(self, name: str) -> Batch:
        zeros = self.values.new_zeros((1, *self.values.shape[1:]))
        return {name: zeros if self.transform is None else self.transform(zeros)}

    def to(self, device: torch.device) -> Dense:
        return Dense(self.values.to(device), self.transform)

    def subset(self, rows: Rows) -> Dense:
        return Dense(self.values[rows], self.transform)


def tensor_of(values: Tensor | NDArray[Any]) -> Tensor:
    """Return values as a tensor in the same memory, which may be read-only: it is only read.

    Shape and dtype are kept.
    """
    if isinstance(values, Tensor):
        return values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)


def array_of(values: Tensor) -> NDArray[Any]:
    """Return values as an array of the same shape and dtype, on the CPU.

    Processes that share memory pass arrays on without a copy.
    """
    return values.cpu().numpy()
