"""Language model that reads a text character by character."""

from __future__ import annotations

from torch import Tensor, nn

from heliotrope.models.layers.blocks import initialise
from heliotrope.models.layers.recurrent import Recurrent
from heliotrope.models.layers.tokens import vocabulary_size
from heliotrope.tasks import Task

__all__ = ["char_lstm"]


def char_lstm(
    task: Task, *, width: int = 32, hidden: int = 128, layers: int = 1, dropout: float = 0.0
) -> nn.Module:
    """Long short-term memory; after each token the logits of the next one, [B, L, num_outputs].

    Source: McMahan et al. (2017), section 3, whose two layers have 256 units each.

    Parameters
    ----------
    width
        Length of a token's vector.
    hidden
        Units of each layer.
    layers
        Number of recurrent layers.
    dropout
        The share of token vectors, and of each layer's units, that is dropped in training: the
        same ones all along a text (Gal and Ghahramani 2016).

    Raises
    ------
    ConfigError
        If the task is not to tell the next token, or a key is out of its range.
    """
    vocabulary = vocabulary_size(task, "char_lstm", ("tokens",))
    reader = Recurrent(nn.LSTM, vocabulary, width, hidden, layers, dropout)
    model = _OnEveryState(reader, nn.Linear(hidden, task.num_outputs))
    initialise(model)
    return model


class _OnEveryState(nn.Module):
    def __init__(self, reader: Recurrent, head: nn.Linear) -> None:
        super().__init__()
        self.reader = reader
        self.head = head

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits after each of the tokens [B, L]: [B, L, num_outputs]."""
        logits: Tensor = self.head(self.reader(tokens))
        return logits
