"""One label of several per example."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.nn import functional

from heliotrope.metrics import CalibrationError, Confusion, Loss, Metric, MetricSet, ScoreCurves
from heliotrope.tasks.base import DataFacts, Task

__all__ = ["Classification", "classification"]


def classification(facts: DataFacts, label_smoothing: float) -> Task:
    """One label of several per example: cross-entropy; accuracy and a confusion matrix."""
    return Classification(facts, label_smoothing)


class Classification(Task):
    """One label of `num_outputs` per example; cross-entropy on logits [B, num_outputs].

    Training takes `label_smoothing` of each label and gives it evenly to all classes
    (Szegedy et al. 2016); metrics do not. Of two classes, the second is what is looked for: the
    areas under its curves and the calibration error are told as well.
    """

    targets = ("label",)

    def __init__(self, facts: DataFacts, label_smoothing: float = 0.0) -> None:
        super().__init__(facts)
        self.class_names = facts.info.class_names
        self.label_smoothing = label_smoothing

    @property
    def num_outputs(self) -> int:
        return len(self.class_names)

    @cached_property
    def metrics(self) -> MetricSet:
        members: tuple[Metric, ...] = (Confusion(self.class_names), Loss(_entropies))
        if self.num_outputs == 2:
            members = (*members, ScoreCurves(), CalibrationError())
        return MetricSet(members, ("accuracy", "loss"))

    def predictions(self, outputs: Tensor) -> dict[str, list[Any]]:
        """Return the likeliest class of each row, and the probability of every class."""
        chances = outputs.double().softmax(dim=1)
        likeliest = [self.class_names[index] for index in chances.argmax(dim=1).tolist()]
        names = [f"probability of {name}" for name in self.class_names]
        return {"prediction": likeliest, **dict(zip(names, chances.T.tolist(), strict=True))}

    def losses(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return functional.cross_entropy(
            outputs, batch["label"], reduction="none", label_smoothing=self.label_smoothing
        )


def _entropies(outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    return functional.cross_entropy(outputs, batch["label"], reduction="none")
