"""What a split is: named fields of all its examples, from which batches are taken.

A batch is a dictionary of tensors, [B, ...] each. What its examples are (images, texts, rows of a
table) is known to the task and the model alone: everything between only passes it on.

Shape legend: N examples in a split, B examples in a batch, A clients in a stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.data.fields import Batch, Field, Rows
from heliotrope.data.mapped import Mapped
from heliotrope.system.background import read_ahead

__all__ = ["Examples"]

_TOGETHER = 1 << 20  # bytes of the batches that are taken at once


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of one split. Compared by identity.

    Parameters
    ----------
    fields
        By name, such as `image` and `label`; each of all examples.
    keys
        The natural group of each example, such as its hospital or its speaker: [N], of any type
        that can be sorted. None if the data has no such groups.

    Raises
    ------
    ValueError
        If there are no fields, if their lengths differ, or if two would fill one name of a batch.
    """

    fields: Mapping[str, Field]
    keys: NDArray[Any] | None = None
    _sources: Mapping[str, str] = field(init=False, repr=False)  # of what a batch has, the fields

    def __post_init__(self) -> None:
        lengths = {name: len(each) for name, each in self.fields.items()}
        lengths |= {} if self.keys is None else {"keys": len(self.keys)}
        if not self.fields or len(set(lengths.values())) != 1:
            raise ValueError(f"the fields of a split must be of one length, not {lengths}")
        pairs = [(name, own) for own, each in self.fields.items() for name in each.blank(own)]
        object.__setattr__(self, "_sources", dict(pairs))
        if len(self._sources) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"two fields of a split fill the same name of a batch: {names}")

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    @cached_property
    def device(self) -> torch.device:
        """Where the fields are, and the batches will be."""
        return next(iter(self.fields.values())).device

    def take(self, indices: Tensor) -> Batch:
        """Return the examples at `indices`, int64 [B] or [A, B].

        The tensors are new, [B, ...] or [A, B, ...], on the device of the fields.
        """
        where = indices.to(self.device)
        batch: Batch = {}
        for name, own in self.fields.items():
            batch.update(own.take(name, where))
        return batch

    def batches(self, rows: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield the batch of each of `rows`, int64 [B] or [A, B], as `take` returns it.

        Several are taken at once, up to a megabyte: on the CPU this halves the time of small ones.
        So `rows` are read ahead. Where batches differ in width, each is taken by itself. Of fields
        in files, a thread takes them while those before are used.
        """
        if not all(each.fixed for each in self.fields.values()):
            yield from map(self.take, rows)
            return
        taken = self._taken_together(rows)
        if any(isinstance(each, Mapped) for each in self.fields.values()):
            taken = read_ahead(taken)
        for some in taken:
            yield from some

    def _taken_together(self, rows: Iterable[Tensor]) -> Iterator[list[Batch]]:
        """Yield the batches of `rows`, those that are taken at once together."""
        size = sum(value.nbytes for value in self.example().values())
        most = max(1, _TOGETHER // max(1, size))  # examples
        waiting: list[Tensor] = []
        for some in rows:
            if waiting and sum(map(torch.numel, waiting)) + some.numel() > most:
                yield self._divided(waiting)
                waiting = []
            waiting.append(some)
        yield self._divided(waiting)

    def _divided(self, rows: list[Tensor]) -> list[Batch]:
        """Take all `rows` at once, and return the part of each."""
        if len(rows) < 2:
            return [self.take(some) for some in rows]
        whole = self.take(torch.cat(rows))
        ends = list(accumulate(map(len, rows)))
        spans = [slice(end - len(some), end) for some, end in zip(rows, ends, strict=True)]
        return [{name: value[span] for name, value in whole.items()} for span in spans]

    def on_demand(self, indices: Tensor) -> Mapping[str, Tensor]:
        """Return what `take` does, each field taken when it is first asked for.

        For what needs few of the fields, such as the weights of all examples.
        """
        return _OnDemand(self.fields, self._sources, indices.to(self.device))

    def example(self) -> Batch:
        """Return a batch of one that is shaped as a typical example, for a model's dry pass.

        It holds zeros and nothing of the data, and so may be sent, kept and logged.
        """
        batch: Batch = {}
        for name, own in self.fields.items():
            batch.update(own.blank(name))
        return batch

    def to(self, device: torch.device) -> Examples:
        """Return the same examples on `device`."""
        return Examples({name: f.to(device) for name, f in self.fields.items()}, self.keys)

    def subset(self, rows: Rows) -> Examples:
        """Return these examples, in this order; of a slice, without a copy."""
        keys = self.keys
        if keys is not None:
            keys = keys[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        return Examples({name: f.subset(rows) for name, f in self.fields.items()}, keys)


class _OnDemand(Mapping[str, Tensor]):
    """A batch whose fields are taken when they are asked for."""

    def __init__(
        self, fields: Mapping[str, Field], sources: Mapping[str, str], indices: Tensor
    ) -> None:
        self._fields, self._sources, self._indices = fields, sources, indices
        self._taken: Batch = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._taken:
            own = self._sources[name]
            self._taken.update(self._fields[own].take(own, self._indices))
        return self._taken[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)
