"""Clients whose model and data are float64: where rounding decides, what is right shows there."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from heliotrope.data import Batch, Field, Rows

from .context import TrainingContext

__all__ = ["double", "in_double"]


def in_double(context: TrainingContext) -> TrainingContext:
    """Return the clients with floating-point weights and numbers of their data in float64."""
    model = context.fresh_model(context.model.state_dict()).double()
    fields = {name: _InDouble(field) for name, field in context.train.fields.items()}
    return replace(context, model=model, train=replace(context.train, fields=fields))


class _InDouble:
    """A field whose numbers are float64 in a batch, where they are floating-point."""

    def __init__(self, field: Field) -> None:
        self._field = field

    def __len__(self) -> int:
        return len(self._field)

    @property
    def device(self) -> torch.device:
        return self._field.device

    @property
    def fixed(self) -> bool:
        return self._field.fixed

    def take(self, name: str, indices: Tensor) -> Batch:
        return {key: double(value) for key, value in self._field.take(name, indices).items()}

    def blank(self, name: str) -> Batch:
        return {key: double(value) for key, value in self._field.blank(name).items()}

    def to(self, device: torch.device) -> _InDouble:
        return _InDouble(self._field.to(device))

    def subset(self, rows: Rows) -> _InDouble:
        return _InDouble(self._field.subset(rows))


def double(value: Tensor) -> Tensor:
    """Return floating-point numbers as float64, others as they are."""
    return value.double() if value.is_floating_point() else value
