"""What models of texts have in common. Shapes: B texts, L tokens of the longest, D numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heliotrope.data.info import UNKNOWN
from heliotrope.errors import ConfigError
from heliotrope.models.layers.inputs import other_model
from heliotrope.tasks import Task

__all__ = ["MeanEmbedding", "forget_unknown", "inside", "require_inputs", "vocabulary_size"]


def require_inputs(task: Task, model: str, wanted: Sequence[str]) -> None:
    """Raise `ConfigError` unless `model` is given just the fields `wanted`, in this order."""
    if task.inputs != tuple(wanted):
        raise ConfigError(
            f"model={model} takes {', '.join(wanted)}, but data={task.facts.name} gives "
            f"{', '.join(task.inputs)}. {other_model(task)}"
        )


def vocabulary_size(
    task: Task, model: str, inputs: Sequence[str] = ("tokens", "tokens_length")
) -> int:
    """Return how many different tokens there are.

    Raises `ConfigError` if `task` gives anything else than `inputs`, which are those of texts. A
    model of the next token takes `tokens` alone.
    """
    require_inputs(task, model, inputs)
    return len(task.facts.info.vocabulary)


def inside(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return which of the tokens [B, L] belong to texts of `lengths` [B], and are no padding."""
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)


@torch.no_grad()
def forget_unknown(embedding: nn.Embedding | nn.EmbeddingBag) -> None:
    """Make unknown words tell nothing at the start: their vector becomes zeros.

    Where a vocabulary has all words of the training rows, no training changes that vector: it
    would stay as it was drawn.
    """
    embedding.weight[UNKNOWN] = 0


class MeanEmbedding(nn.EmbeddingBag):
    """The mean of the vectors of a text's tokens, [B, D]; zeros for a text without any."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__(vocabulary, width, mode="sum")
        forget_unknown(self)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        shares = inside(tokens, lengths) / lengths.clamp(min=1).unsqueeze(1)
        return super().forward(tokens, per_sample_weights=shares.to(self.weight.dtype))
