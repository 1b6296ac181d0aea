"""Pictures and texts that belong together, told from those that do not.

Shapes: B examples, N candidates, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from heliotrope.errors import ConfigError
from heliotrope.metrics import Batch, Cell, Direction, Loss, Metric, MetricSet, Recall, Sums
from heliotrope.tasks.base import DataFacts, Task

__all__ = ["Contrastive", "contrastive"]

_BEST = (1, 5, 10)  # candidates among which the right one is looked for
_PLACE = "place"  # of an example among the candidates


def contrastive(facts: DataFacts, *, width: int = 64) -> Task:
    """Pictures and texts that belong together: cross-entropy of similarities; recall both ways.

    Parameters
    ----------
    width
        Length of the vectors that are compared.

    Raises
    ------
    ConfigError
        If `width` is less than 1.
    """
    if width < 1:
        raise ConfigError(f"task.width={width} must be at least 1.")
    return Contrastive(facts, width)


class Contrastive(Task):
    """Which text belongs to a picture, and which picture to a text: outputs [B, 2, D].

    An example's loss is the mean of two cross-entropies over the products of vectors: of its
    picture with all texts, and of its text with all pictures. All are those of the global batch in
    training, of the client's batch in federated training, and of the whole split in evaluation.

    Source: Radford et al. (2021), Learning Transferable Visual Models From Natural Language
    Supervision, figure 3.
    """

    joint = True

    def __init__(self, facts: DataFacts, width: int = 64) -> None:
        super().__init__(facts)
        self._width = width

    @property
    def num_outputs(self) -> int:
        return self._width

    @cached_property
    def metrics(self) -> MetricSet:
        ways = ("image_to_text", "text_to_image")
        members: list[Metric] = [
            _OneWay(Recall(k, _PLACE), side, way) for k in _BEST for side, way in enumerate(ways)
        ]
        first = tuple(f"{way}_recall_at_{_BEST[-1]}" for way in ways)
        return MetricSet((*members, Loss(_entropies)), (*first, "loss"))

    def output_shape(self, batch: Mapping[str, Tensor]) -> tuple[int, ...]:
        return (len(batch[self.inputs[0]]), 2, self.num_outputs)

    def losses(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002 - the vectors are enough
        return _entropies(*self.compared(outputs, outputs, 0))

    def compared(self, outputs: Tensor, candidates: Tensor, first: int) -> tuple[Tensor, Batch]:
        """Return similarities [B, 2, N]: of pictures with all texts, of texts with all pictures."""
        pictures = outputs[:, 0] @ candidates[:, 1].T
        texts = outputs[:, 1] @ candidates[:, 0].T
        places = torch.arange(first, first + len(outputs), device=outputs.device)
        return torch.stack([pictures, texts], dim=1), {_PLACE: places}


def _entropies(similarities: Tensor, batch: Batch) -> Tensor:
    places = batch[_PLACE]
    each = [
        functional.cross_entropy(similarities[:, side], places, reduction="none")
        for side in range(2)
    ]
    return (each[0] + each[1]) / 2


@dataclass(frozen=True)
class _OneWay:
    """A metric of a ranking, of one side of similarities [B, 2, N]."""

    metric: Metric
    side: int
    way: str

    @property
    def size(self) -> int:
        return self.metric.size

    @property
    def directions(self) -> Mapping[str, Direction]:
        return {f"{self.way}_{name}": best for name, best in self.metric.directions.items()}

    def cells(self, outputs: Tensor, batch: Batch) -> Sequence[Cell]:
        return self.metric.cells(outputs[:, self.side], batch)

    def compute(self, sums: Sums) -> dict[str, Sums]:
        found = self.metric.compute(sums)
        return {f"{self.way}_{name}": value for name, value in found.items()}
