"""What a batch means: the loss that training minimises and the metrics that evaluation adds up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from heliotrope.data import Dataset
from heliotrope.metrics import ClassificationMetrics

__all__ = ["Classification", "Task", "task_of"]


class Task(Protocol):
    """Loss and metrics of one kind of problem, over one dataset's shapes."""

    @property
    def data_name(self) -> str:
        """Name of the dataset, for error messages."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example's input."""

    @property
    def num_outputs(self) -> int:
        """Size of the model's last dimension."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the rows of the confusion matrix are called."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each example's training loss, [B]."""

    def measure(self, outputs: Tensor, targets: Tensor) -> ClassificationMetrics:
        """Return the batch's contribution to the metrics."""

    def no_metrics(self) -> ClassificationMetrics:
        """Return the metrics of no examples: the zero of the sum."""


@dataclass(frozen=True)
class Classification:
    """One label of `num_outputs` per example; cross-entropy on logits [B, num_outputs].

    Training takes `label_smoothing` of each label and gives it evenly to all classes
    (Szegedy et al. 2016); metrics do not.
    """

    data_name: str
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    label_smoothing: float = 0.0

    @property
    def num_outputs(self) -> int:
        return len(self.class_names)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(
            outputs, targets, reduction="none", label_smoothing=self.label_smoothing
        )

    def measure(self, outputs: Tensor, targets: Tensor) -> ClassificationMetrics:
        classes = self.num_outputs
        cells = targets * classes + outputs.argmax(dim=1)
        confusion = torch.bincount(cells, minlength=classes * classes).view(classes, classes)
        losses = functional.cross_entropy(outputs, targets, reduction="none")
        loss_sum = losses.sum(dtype=torch.float64)
        return ClassificationMetrics(confusion.cpu().numpy(), float(loss_sum))

    def no_metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics.zero(self.num_outputs)


def task_of(dataset: Dataset, label_smoothing: float = 0.0) -> Task:
    """Return the task that `dataset` poses; `label_smoothing` is of the training loss."""
    return Classification(dataset.name, dataset.input_shape, dataset.class_names, label_smoothing)
