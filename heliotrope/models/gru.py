"""Classifier of texts that reads them word by word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heliotrope.models.layers.blocks import initialise
from heliotrope.models.layers.recurrent import Recurrent
from heliotrope.models.layers.tokens import vocabulary_size
from heliotrope.tasks import Task

__all__ = ["gru"]


def gru(
    task: Task, *, width: int = 32, hidden: int = 64, layers: int = 1, dropout: float = 0.0
) -> nn.Module:
    """Gated recurrent units; a linear layer on the state after the last word, [B, num_outputs].

    Source: Cho et al. (2014), Learning Phrase Representations using RNN Encoder-Decoder.

    Parameters
    ----------
    width
        Length of a word vector.
    hidden
        Units of each layer.
    layers
        Number of recurrent layers.
    dropout
        The share of word vectors, and of each layer's units, that is dropped in training: the same
        ones all along a text.

    Raises
    ------
    ConfigError
        If the inputs are no texts, or a key is out of its range.
    """
    vocabulary = vocabulary_size(task, "gru")
    reader = Recurrent(nn.GRU, vocabulary, width, hidden, layers, dropout)
    model = _OnLastState(reader, nn.Linear(hidden, task.num_outputs))
    initialise(model)
    return model


class _OnLastState(nn.Module):
    def __init__(self, reader: Recurrent, head: nn.Linear) -> None:
        super().__init__()
        self.reader = reader
        self.head = head

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the outputs, [B, num_outputs], for tokens [B, L] of texts of lengths [B]."""
        states = self.reader(tokens)
        is_last = torch.arange(tokens.shape[1], device=tokens.device) == lengths.unsqueeze(1) - 1
        last = torch.where(is_last.unsqueeze(2), states, 0.0).sum(dim=1)
        outputs: Tensor = self.head(last)
        return outputs
