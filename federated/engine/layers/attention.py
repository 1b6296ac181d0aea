"""Attention in the place of torch's kernels, which draw random numbers or cannot be mapped."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .linear import linear
from .refusal import Dropout

__all__ = ["Attention", "multi_head"]


class Attention:
    """In the place of `torch.nn.functional.scaled_dot_product_attention`."""

    def __init__(self, dropout: Dropout) -> None:
        self._dropout = dropout

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **how: Any,
    ) -> Tensor:
        """Return the values [..., L, E] that `query` [..., L, D] finds by `key` [..., S, D].

        `how` may hold `scale` and `enable_gqa`. Queries that a mask keeps from all keys get 0,
        as torch's kernels give them.
        """
        if is_causal and attn_mask is not None:
            raise RuntimeError("attention is given both attn_mask and is_causal=True")
        if how.get("enable_gqa"):
            key, value = _repeated(key, query.shape[-3]), _repeated(value, query.shape[-3])
        scale = how.get("scale")
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = (query * scale) @ key.transpose(-2, -1)
        if is_causal:
            # Added: a mask that fills costs several times as much, and again in the gradient.
            later = scores.new_full(scores.shape[-2:], -math.inf).triu(diagonal=1)
            weights = (scores + later).softmax(dim=-1)
        elif attn_mask is not None:
            weights = _masked_softmax(scores, attn_mask)
        else:
            weights = scores.softmax(dim=-1)
        if dropout_p > 0:
            weights = self._dropout(weights, p=dropout_p, training=True)
        return weights @ value


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over the last dimension where `mask` is true, or added if it is not."""
    boolean = mask.dtype == torch.bool
    scores = scores.masked_fill(~mask, -math.inf) if boolean else scores + mask
    nowhere = (scores == -math.inf).all(dim=-1, keepdim=True)
    return scores.masked_fill(nowhere, 0.0).softmax(dim=-1).masked_fill(nowhere, 0.0)


def _repeated(heads: Tensor, wanted: int) -> Tensor:
    """Return [..., heads, S, E] with each head repeated, so that there are as many as wanted."""
    times = wanted // heads.shape[-3]
    shape = (*heads.shape[:-2], times, *heads.shape[-2:])
    return heads.unsqueeze(-3).expand(shape).flatten(-4, -3)


def multi_head(dropout: Dropout) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return torch's `multi_head_attention_forward` with our attention and this dropout.

    It is torch's own code, so that its checks, masks and options are the same. Only the names
    that it looks up are ours, for a function mode is off inside of the function it has caught.
    """

    def drop(weights: Tensor, p: float) -> Tensor:
        return dropout(weights, p=p, training=True)

    names: dict[str, Any] = {
        **vars(functional),
        "has_torch_function": lambda _: False,
        "scaled_dot_product_attention": Attention(dropout),
        "dropout": drop,
        "linear": linear,
    }
    for helper in ("_in_projection", "_in_projection_packed"):
        names[helper] = _looking_up(getattr(functional, helper), names)
    return _looking_up(functional.multi_head_attention_forward, names)


def _looking_up(function: Callable[..., Any], names: dict[str, Any]) -> Callable[..., Any]:
    """Return `function` with other global names."""
    assert isinstance(function, FunctionType)
    ours = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    ours.__kwdefaults__ = function.__kwdefaults__
    return ours
