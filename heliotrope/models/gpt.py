"""Transformer that predicts the next token: a small GPT.

Shapes: B texts, L tokens of the longest, D numbers of a token (`width`), H heads, V tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from heliotrope.errors import ConfigError
from heliotrope.models.layers.blocks import check_dropout, check_size, dropout_layer
from heliotrope.models.layers.tokens import forget_unknown, vocabulary_size
from heliotrope.tasks import Task

__all__ = ["gpt"]

_DEVIATION = 0.55  # of initial weights, times the square root of the width: GPT-2's 0.02 at 768


def gpt(
    task: Task,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 128,
    dropout: float = 0.0,
    tied: bool = False,
) -> nn.Module:
    """Pre-norm blocks of causal attention; after each token the next one's logits, [B, L, V].

    Positions are learned. Source: Radford et al. (2019), GPT-2.

    Parameters
    ----------
    width
        Length of a token's vector.
    layers
        Number of blocks.
    heads
        Of attention in each block; they divide `width`.
    context
        The longest text, in tokens.
    dropout
        The share of numbers dropped, in training, of token vectors and of what a block adds.
    tied
        Whether logits are products with the vectors of the tokens (Press and Wolf 2017), or have
        weights of their own.

    Raises
    ------
    ConfigError
        If the task is not to tell the next token, texts are longer than `context`, or a key is
        out of its range.
    """
    vocabulary = vocabulary_size(task, "gpt", ("tokens",))
    sizes = {"width": width, "layers": layers, "heads": heads, "context": context}
    for key, size in sizes.items():
        check_size(f"model.{key}", size)
    check_dropout(dropout)
    if width % heads:
        raise ConfigError(
            f"model.width={width} is not divided by model.heads={heads}. Choose a multiple of it."
        )
    if tied and vocabulary != task.num_outputs:
        raise ConfigError(
            f"model.tied=true needs as many outputs as tokens, but the task has {task.num_outputs} "
            f"and data={task.facts.name} {vocabulary}. Set model.tied=false."
        )
    typical = task.facts.example["tokens"].shape[1]
    if typical > context:
        raise ConfigError(_too_long(context, typical))
    blocks = [_Block(width, heads, dropout) for _ in range(layers)]
    head = nn.Linear(width, task.num_outputs, bias=False)
    model = _Gpt(vocabulary, context, dropout_layer(dropout), blocks, head)
    if tied:
        head.weight = model.embedding.weight
    _initialise(model)
    return model


def _too_long(context: int, found: int) -> str:
    return (
        f"model.context={context} is less than the {found} tokens of a batch of texts. Set "
        f"model.context={found} or more."
    )


def _initialise(model: _Gpt) -> None:
    """Draw the weights as GPT-2 has them: of what is added to the stream of the blocks, smaller."""
    deviation = _DEVIATION / math.sqrt(model.positions.shape[1])
    adding = deviation / math.sqrt(2 * len(model.blocks))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.dim() > 1:
            adds = name.endswith(("attention.out.weight", "feed.2.weight"))
            nn.init.normal_(weight, std=adding if adds else deviation)
    forget_unknown(model.embedding)


class _Gpt(nn.Module):
    def __init__(
        self,
        vocabulary: int,
        context: int,
        dropout: nn.Module,
        blocks: Sequence[_Block],
        head: nn.Linear,
    ) -> None:
        super().__init__()
        width = head.in_features
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.dropout = dropout
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = head

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits after each of the tokens [B, L]: [B, L, V]."""
        length = tokens.shape[1]
        if length > len(self.positions):
            raise ConfigError(_too_long(len(self.positions), length))
        states = self.dropout(self.embedding(tokens) + self.positions[:length])
        for block in self.blocks:
            states = block(states)
        logits: Tensor = self.head(self.norm(states))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.before_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.drop_attention = dropout_layer(dropout)
        self.drop_feed = dropout_layer(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """Return the states [B, L, D] after this block."""
        states = states + self.drop_attention(self.attention(self.before_attention(states)))
        added: Tensor = self.drop_feed(self.feed(self.before_feed(states)))
        return states + added


class _Attention(nn.Module):
    """Each position attends to those before it and to itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """Return what is found for states [B, L, D], of the same shape."""
        parts = self.queries_keys_values(states).unflatten(2, (3, self._heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, L, D / H]
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        outputs: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return outputs
