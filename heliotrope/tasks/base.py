"""A task: what the model is given of a batch, what training minimises, and what is measured.

Shapes: B examples of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from heliotrope.data import Batch, Dataset, Info
from heliotrope.errors import ConfigError
from heliotrope.metrics import MetricSet

__all__ = ["DataFacts", "Task"]


@dataclass(frozen=True, eq=False)
class DataFacts:
    """What a task and a model are told of a dataset.

    Parameters
    ----------
    name
        Of the dataset, for messages.
    info
        Class names, the vocabulary and the like.
    example
        A batch of one: the names, shapes and types of the fields. It holds nothing of the data;
        see `heliotrope.data.Examples.example`.
    """

    name: str
    info: Info
    example: Batch

    @classmethod
    def of(cls, dataset: Dataset) -> DataFacts:
        """Return those of `dataset`."""
        example = {name: value.cpu() for name, value in dataset.train.example().items()}
        return cls(dataset.name, dataset.info, example)


class Task(ABC):
    """Loss, weights and metrics of one kind of problem, over the fields of one dataset.

    An example weighs a whole number of units: 1, or as much as it has parts that are predicted,
    such as tokens. A step minimises the sum of its examples' losses over the sum of their weights,
    which is known before the forward pass: so it is the same however its examples are divided
    among workers, passes and stacks. What users are told is the loss per unit.

    Parameters
    ----------
    facts
        Of the dataset.

    Raises
    ------
    ConfigError
        If the dataset lacks one of the fields `targets`, or they are no tuple.
    """

    targets: tuple[str, ...] = ()
    """Fields that the model is not given."""

    joint: bool = False
    """Whether an example's loss depends on the outputs of the others, and on nothing else of them.

    Then `losses` is given the outputs of a whole global batch, and evaluation goes by `compared`.
    """

    def __init__(self, facts: DataFacts) -> None:
        self.facts = facts
        if isinstance(self.targets, str):
            raise ConfigError(
                f"{type(self).__name__}.targets={self.targets!r} is no tuple of fields. Write "
                f"targets = ({self.targets!r},), with a comma."
            )
        lacking = [name for name in self.targets if name not in facts.example]
        if lacking:
            raise ConfigError(
                f"data={facts.name} has no {lacking[0]}, which {type(self).__name__} needs: its "
                f"fields are {', '.join(facts.example)}. Choose other data, or another task."
            )

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The fields that the model is called with, in this order: all but the targets."""
        return tuple(name for name in self.facts.example if name not in self.targets)

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Size of the last dimension of the model's outputs."""

    @property
    @abstractmethod
    def metrics(self) -> MetricSet:
        """What is measured; its first number is the one that matters most.

        A `functools.cached_property`, so that a configuration can add to it.
        """

    @abstractmethod
    def losses(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return each example's loss in training, summed over its units of weight: [B].

        It must depend on no other example, unless the task is `joint`. `outputs` are the model's,
        in full precision.
        """

    def compared(self, outputs: Tensor, candidates: Tensor, first: int) -> tuple[Tensor, Batch]:
        """Return what the metrics of a `joint` task measure of some examples among all of a split.

        `outputs`, [B, ...], are those of `candidates`, [N, ...], from place `first` on.
        """
        raise NotImplementedError(f"{type(self).__name__} is joint, and must say what it compares")

    def weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return each example's weight, a whole number of at least 0: integers [B]."""
        some = batch[(*self.targets, *self.inputs)[0]]
        return torch.ones(len(some), dtype=torch.int64, device=some.device)

    def predictions(self, outputs: Tensor) -> dict[str, list[Any]]:
        """Return what a user is told of each row: columns of one value a row, for JSON or CSV.

        Parameters
        ----------
        outputs
            The model's for some rows, float32 [B, ...] on the CPU.
        """
        if outputs.dim() != 2:
            raise ConfigError(
                f"{type(self).__name__} says nothing of single rows: the model's outputs for one "
                f"are {list(outputs.shape[1:])}. Define its predictions(outputs)."
            )
        names = [f"output {index}" for index in range(outputs.shape[1])]
        return dict(zip(names, outputs.T.tolist(), strict=True))

    def output_shape(self, batch: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Return the shape that the model's outputs for a batch must have: [B, num_outputs]."""
        return (len(batch[self.inputs[0]]), self.num_outputs)

    def arguments(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return what the model is called with for a batch: its fields `inputs`, [B, ...] each."""
        return tuple(batch[name] for name in self.inputs)

    def call(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the model's outputs for a batch, [B, ...]."""
        outputs: Tensor = model(*self.arguments(batch))
        return outputs

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example's first input, without the batch; images are (channels, h, w)."""
        return tuple(self.facts.example[self.inputs[0]].shape[1:])
