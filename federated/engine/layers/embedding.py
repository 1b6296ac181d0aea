"""Embeddings in the place of torch's, whose kernels map wrongly or in a loop over the clients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .refusal import NotStackableError

__all__ = ["embedding", "embedding_bag", "embedding_kernel", "refuse_bag_kernel"]

_FAR = 1 << 40  # no table has as many rows


def embedding(
    inputs: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **how: Any
) -> Tensor:
    """In the place of `torch.nn.functional.embedding`: rows of `weight`, [*inputs.shape, D].

    The gradient of the row `padding_idx` is zero.
    """
    names = ("max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    _refuse(**{**dict(zip(names, args, strict=False)), **how})
    rows = len(weight)
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise AssertionError("Padding_idx must be within num_embeddings")
    return _rows(weight, inputs, None if padding_idx is None else padding_idx % rows)


def embedding_kernel(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """In the place of `torch.embedding`, where a negative `padding_idx` is none."""
    _refuse(scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
    return _rows(weight, indices, padding_idx if padding_idx >= 0 else None)


def embedding_bag(inputs: Tensor, weight: Tensor, offsets: Tensor | None, **how: Any) -> Tensor:
    """In the place of `torch.nn.functional.embedding_bag`: a row [D] for each bag."""
    _refuse(**how)
    mode, each = how["mode"], how["per_sample_weights"]
    if inputs.is_floating_point() or mode not in _BAGS or (each is not None and mode != "sum"):
        return functional.embedding_bag(inputs, weight, offsets, **how)  # which says what is wrong
    padding = how["padding_idx"]
    padding = None if padding is None else padding % len(weight)
    if inputs.dim() == 2:
        rows = _rows(weight, inputs, padding)
        inside = torch.ones_like(inputs, dtype=torch.bool)
    else:
        assert offsets is not None
        # Every bag sees all rows, and which of them are inside: [bags, N].
        positions = torch.arange(len(inputs), device=inputs.device)
        starts, ends = offsets, None
        if how["include_last_offset"]:
            starts, ends = offsets[:-1], offsets[-1:]
        after = positions >= starts.unsqueeze(1)
        last = torch.zeros_like(after[:1]) if ends is None else (positions >= ends).unsqueeze(0)
        inside = after & ~torch.cat([after[1:], last])
        rows = _rows(weight, inputs, padding).unsqueeze(0)
        inputs = inputs.unsqueeze(0)
        each = None if each is None else each.unsqueeze(0)
    if padding is not None:
        inside = inside & (inputs != padding)
    if each is not None:
        rows = rows * each.unsqueeze(-1)
    return _BAGS[mode](rows, inside.unsqueeze(-1))


def refuse_bag_kernel(*_: Any, **__: Any) -> None:
    """Refuse `torch.embedding_bag`, whose other results are of torch's own making."""
    raise NotStackableError("it calls torch.embedding_bag; use torch.nn.functional.embedding_bag")


def _refuse(
    max_norm: float | None = None,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    **_: Any,
) -> None:
    reasons = {
        "max_norm": (max_norm is not None, "it rescales weights in place"),
        "scale_grad_by_freq": (scale_grad_by_freq, "it counts over a whole batch"),
        "sparse": (sparse, "its gradients are sparse"),
    }
    for name, (given, reason) in reasons.items():
        if given:
            raise NotStackableError(f"an embedding has {name}: {reason}")


def _rows(weight: Tensor, indices: Tensor, padding: int | None) -> Tensor:
    """Return the rows of `weight` by their indices; `padding` gets no gradient.

    Stacked tables are one long table. An index outside of its own is moved beyond them all, where
    torch finds it, for it would else be a row of the next client's.
    """
    indices = indices.long()
    indices = torch.add(indices, indices.div(len(weight), rounding_mode="floor"), alpha=_FAR)
    rows = torch.embedding(weight, indices)
    if padding is None:
        return rows
    return torch.where((indices == padding).unsqueeze(-1), rows.detach(), rows)


def _sum(rows: Tensor, inside: Tensor) -> Tensor:
    return torch.where(inside, rows, 0.0).sum(dim=1)


def _mean(rows: Tensor, inside: Tensor) -> Tensor:
    return _sum(rows, inside) / inside.sum(dim=1).clamp(min=1)


def _max(rows: Tensor, inside: Tensor) -> Tensor:
    largest = torch.where(inside, rows, -math.inf).max(dim=1).values
    return torch.where(inside.any(dim=1), largest, 0.0)


_BAGS = {"sum": _sum, "mean": _mean, "max": _max}
