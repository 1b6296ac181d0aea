"""Fields of a batch side by side, as dense layers take them: numbers, and categories as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn

from heliotrope.data.info import MISSING, UNSEEN
from heliotrope.errors import ConfigError
from heliotrope.models.layers.inputs import other_model
from heliotrope.tasks import Task

__all__ = ["Columns", "OnColumns"]

CATEGORY = "category"


class Columns(nn.Module):
    """Turn fields [B, ...] into one, [B, width]: numbers are flattened, categories encoded.

    Parameters
    ----------
    sizes
        Of each field how many numbers it holds; of the categories how many columns.
    categories
        The position of the categories among the fields, if there are any.
    values
        The number of values of each column of categories.
    embedding
        Length of the learned vector of each value; 0 for a one-hot encoding.
    """

    def __init__(
        self, sizes: Sequence[int], categories: int | None, values: Sequence[int], embedding: int
    ) -> None:
        super().__init__()
        self._categories = categories
        self._starts = [0, *accumulate(values)]  # of each column in the table of all values
        self.table = nn.Embedding(sum(values), embedding) if values and embedding else None
        widths = list(sizes)
        if categories is not None:
            widths[categories] = len(values) * embedding or sum(values)
        self._before = sum(widths[:categories]) if categories is not None else 0
        self.width = sum(widths)

    @classmethod
    def of(cls, task: Task, model: str, embedding: int) -> Columns:
        """Return the columns of the task's inputs.

        Raises `ConfigError` if one is neither numbers nor categories.
        """
        facts, names = task.facts, task.inputs
        if embedding < 0:
            raise ConfigError(f"model.embedding={embedding} must be at least 0.")
        for name in names:
            if name != CATEGORY and not facts.example[name].is_floating_point():
                raise ConfigError(
                    f"model={model} takes numbers and categories, but data={facts.name} has "
                    f"{name}. {other_model(task)}"
                )
        return cls(
            [prod(facts.example[name].shape[1:]) for name in names],
            names.index(CATEGORY) if CATEGORY in names else None,
            list(facts.info.categories.values()) if CATEGORY in names else [],
            embedding,
        )

    @property
    def is_plain(self) -> bool:
        """Whether there are no categories."""
        return self._categories is None

    @torch.no_grad()
    def forget_unseen(self, layer: nn.Linear) -> None:
        """Make unseen and missing values tell nothing at the start to the `layer` on these columns.

        No training changes the weights of those that the training rows lack: they would stay as
        they were drawn.
        """
        special = [start + value for start in self._starts[:-1] for value in (UNSEEN, MISSING)]
        if self.table is not None:
            self.table.weight[special] = 0
        else:
            layer.weight[:, [self._before + index for index in special]] = 0

    def forward(self, *fields: Tensor) -> Tensor:
        """Return the fields side by side, [B, width]."""
        parts = [
            self._encoded(field) if index == self._categories else field.flatten(1)
            for index, field in enumerate(fields)
        ]
        return torch.cat(parts, dim=1)

    def _encoded(self, category: Tensor) -> Tensor:
        starts = torch.tensor(self._starts[:-1], device=category.device)
        indices = category + starts  # [B, C]
        if self.table is not None:
            vectors: Tensor = self.table(indices)
            return vectors.flatten(1)
        zeros = torch.zeros(len(indices), self._starts[-1], device=indices.device)
        return zeros.scatter(1, indices, 1.0)


class OnColumns(nn.Module):
    """Layers on the `Columns` of a batch."""

    def __init__(self, columns: Columns, layers: nn.Sequential) -> None:
        super().__init__()
        self.columns = columns
        self.layers = layers

    def forward(self, *fields: Tensor) -> Tensor:
        inputs = self.columns(*fields)
        outputs: Tensor = self.layers(inputs.to(next(self.layers.parameters()).dtype))
        return outputs
