"""Canary examples of random numbers, at the end of a training split: nobody's data.

Nothing in them depends on the other examples, so that what is promised to those still holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from heliotrope.data.dataset import Dataset
from heliotrope.data.examples import Examples
from heliotrope.data.fields import Batch, Dense, Field, Rows
from heliotrope.data.info import Info
from heliotrope.errors import ConfigError
from heliotrope.privacy.canaries import Canaries
from heliotrope.seeding import numpy_generator

__all__ = ["with_canaries"]


def with_canaries(dataset: Dataset, count: int, run_seed: int) -> Dataset:
    """Return `dataset` with `count` canary examples at the end of its training split.

    All of them are rows of it, those that do not take part as well: `Dataset.absent` says which.
    Numbers are 1 or -1 at random, targets and categories any that there are. Raises `ConfigError`
    if it cannot be told which there are. Nothing changes for a `count` of 0, and
    where there are some already.
    """
    if not count or dataset.canaries is not None:
        return dataset
    train, canaries = dataset.train, Canaries.drawn("record", count, run_seed)
    generator = numpy_generator(run_seed, "canary examples")
    fields: dict[str, Field] = {}
    for name, field in train.fields.items():
        blank = field.blank(name)
        if not field.fixed or set(blank) != {name}:
            raise ConfigError(
                f"audit.canaries={count}: data={dataset.name} has examples of many lengths "
                f"({name}), of which no canaries can be made. Set audit.canaries=0."
            )
        values = _random(name, blank[name], count, dataset, generator)
        fields[name] = _Joined(field, Dense(values))
    keys = train.keys
    if keys is not None:
        keys = np.concatenate([keys, np.repeat(keys[:1], count)])
    return replace(dataset, train=Examples(fields, keys), canaries=canaries)


def _random(
    name: str, blank: Tensor, count: int, dataset: Dataset, generator: np.random.Generator
) -> Tensor:
    """Return random values of a field for all canaries, shaped and typed as in a batch."""
    shape = (count, *blank.shape[1:])
    if blank.is_floating_point():
        signs = torch.from_numpy(generator.choice(np.array([-1.0, 1.0]), size=shape))
        info = dataset.info
        if name in ("target", "rating"):
            signs = signs * info.target_std + info.target_mean
        return signs.to(blank.dtype)
    most = _values_of(name, dataset.info)
    if most is None:
        raise ConfigError(
            f"audit.canaries={count}: it is not known which values the field {name} of data="
            f"{dataset.name} can have, of which canaries could be made. Set audit.canaries=0."
        )
    drawn = generator.integers(0, np.broadcast_to(np.asarray(most), shape))
    return torch.from_numpy(drawn).to(blank.dtype)


def _values_of(name: str, info: Info) -> int | list[int] | None:
    """Return how many values a field of whole numbers has, of categories those of each column."""
    known: dict[str, int | list[int]] = {
        "label": len(info.class_names),
        "category": list(info.categories.values()),
        "user": info.users,
        "item": info.items,
    }
    return known.get(name) or None


@dataclass(frozen=True, eq=False)
class _Joined(Field):
    """A field, and after it what a batch has of further examples."""

    first: Field
    others: Dense

    def __len__(self) -> int:
        return len(self.first) + len(self.others)

    @property
    def device(self) -> torch.device:
        return self.first.device

    @property
    def fixed(self) -> bool:
        return True

    def take(self, name: str, indices: Tensor) -> Batch:
        known = len(self.first)
        found = self.first.take(name, indices.clamp(max=known - 1))[name]
        beyond = indices >= known
        if bool(beyond.any()):
            found[beyond] = self.others.take(name, indices[beyond] - known)[name]
        return {name: found}

    def blank(self, name: str) -> Batch:
        return self.first.blank(name)

    def to(self, device: torch.device) -> _Joined:
        return _Joined(self.first.to(device), self.others.to(device))

    def subset(self, rows: Rows) -> Field:
        positions = torch.arange(len(self), device=self.device)[rows]
        first = positions[positions < len(self.first)]
        if len(first) == len(positions):
            return self.first.subset(first)
        return Dense(self.take("", positions)[""])
