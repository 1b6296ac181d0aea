"""Classifier of texts that does not look at the order of their words."""

from __future__ import annotations

from torch import Tensor, nn

from heliotrope.models.layers.blocks import check_size, dense_head, dropout_layer, initialise
from heliotrope.models.layers.tokens import MeanEmbedding, vocabulary_size
from heliotrope.tasks import Task

__all__ = ["embedding_bag"]


def embedding_bag(
    task: Task,
    *,
    width: int = 64,
    hidden: list[int] = [],  # noqa: B006 - it is only read
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Dense layers on the mean of a text's word vectors, [B, num_outputs].

    Source: Joulin et al. (2017), Bag of Tricks for Efficient Text Classification.

    Parameters
    ----------
    width
        Length of a word vector.
    hidden
        Units of each hidden layer between the mean and the outputs.
    activation
        Of the hidden layers: relu, gelu or tanh.
    dropout
        The share of the mean, and of each hidden layer, that is dropped in training.

    Raises
    ------
    ConfigError
        If the inputs are no texts, or a key is out of its range.
    """
    check_size("model.width", width)
    vocabulary = vocabulary_size(task, "embedding_bag")
    head = dense_head(width, hidden, task.num_outputs, activation, dropout)
    layers = nn.Sequential(dropout_layer(dropout), *head)
    model = _OnMean(MeanEmbedding(vocabulary, width), layers)
    initialise(model)
    return model


class _OnMean(nn.Module):
    def __init__(self, embedding: MeanEmbedding, layers: nn.Sequential) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = layers

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the outputs, [B, num_outputs], for tokens [B, L] of texts of lengths [B]."""
        outputs: Tensor = self.layers(self.embedding(tokens, lengths))
        return outputs
