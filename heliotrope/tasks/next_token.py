"""The token that follows each token of a text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from heliotrope.metrics import Accuracy, MetricSet, TokenLoss
from heliotrope.tasks.base import DataFacts, Task

__all__ = ["NextToken", "next_token"]


def next_token(facts: DataFacts) -> Task:
    """Token that follows each token of a text: cross-entropy; perplexity, accuracy."""
    return NextToken(facts)


class NextToken(Task):
    """The next token at every position: cross-entropy on logits [B, W, num_outputs].

    An example weighs as much as it has target tokens, so that each token counts alike, however
    texts are cut and batched. The model is called with `tokens` [B, W] alone: one that does not
    look ahead needs no lengths, since what is padded follows everything else.
    """

    targets = ("next", "next_length")

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        return ("tokens",)

    @property
    def num_outputs(self) -> int:
        return len(self.facts.info.vocabulary)

    @cached_property
    def metrics(self) -> MetricSet:
        names = self.facts.info.vocabulary
        characters = all(len(name) == 1 for name in names[2:])  # after padding and unknown
        loss = TokenLoss(self.losses, self.weights, characters=characters)
        accuracy = Accuracy(label="next", length="next_length")
        return MetricSet((loss, accuracy), ("perplexity", "loss"))

    def output_shape(self, batch: Mapping[str, Tensor]) -> tuple[int, ...]:
        return (*batch["tokens"].shape, self.num_outputs)

    def weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["next_length"]

    def losses(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        targets = batch["next"]
        each = functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")
        positions = torch.arange(targets.shape[1], device=targets.device)
        return torch.where(positions < batch["next_length"][:, None], each, 0.0).sum(dim=1)
