"""torch.optim's SGD, Adam and AdamW as in-place updates of plain tensors, alone or stacked.

Written out because a client lives for a few steps only: making a `torch.optim` object for it
costs more than the steps, and the fused updates below need the gradient's factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from heliotrope.config import OptimizerConfig
from heliotrope.config.training import LossConfig

from .capture import Gradient

__all__ = ["WRITTEN_OUT", "LocalOptimizer"]

WRITTEN_OUT = ("sgd", "adam", "adamw")
"""The optimizers whose updates are here; others train sequentially, with torch's own."""

_ADAMS = ("adam", "adamw")
# Where BLAS adds a sum of products to a number with one rounding of it, and not with one for each
# product. Found with MKL of torch 2.13 on Zen 5, the same for all larger sizes.
_ADDED_AT_ONCE = 128  # products at most
_ROWS, _COLUMNS = 4, 12  # of a matrix at least


class LocalOptimizer:
    """State of one client's optimizer, or of a stack of clients that step together.

    `weights` are those trained, [*shape], or [K, *shape] if `stacked`. To each gradient is added
    the `term` of its place among them and its weight, if there is one.
    """

    def __init__(
        self,
        cfg: OptimizerConfig,
        loss: LossConfig,
        weights: Sequence[Tensor],
        *,
        stacked: bool = False,
        term: Callable[[int, Tensor], Tensor] | None = None,
    ) -> None:
        assert cfg.name in WRITTEN_OUT
        self._cfg: Any = cfg  # with the keys of its choice
        self._loss = loss
        self._stacked = stacked
        self._term = term
        self._count = 0
        slots = 2 if cfg.name in _ADAMS else int(getattr(cfg, "momentum", 0.0) > 0)
        self._slots = [[torch.zeros_like(p) for p in weights] for _ in range(slots)]

    def step(self, weights: Sequence[Tensor], gradients: Sequence[Gradient]) -> None:
        """Update `weights` in place; with a stack, its first rows, as many as there are.

        A weight without a gradient stays as it is, unless something else is added to it: so do
        torch's optimizers.
        """
        self._count += 1
        if any(gradient is None for gradient in gradients):
            gradients = self._completed(weights, gradients)
        if self._loss.l1 or self._loss.l2:
            pairs = zip(weights, gradients, strict=True)
            gradients = [_penalised(g, w, self._loss) for w, g in pairs]
        added: list[Tensor | None] = [None] * len(weights)
        if self._term is not None:
            added = [self._term(index, weight) for index, weight in enumerate(weights)]
        if self._cfg.clip_norm is not None:
            # What is added is a part of what is clipped.
            parts = zip(gradients, weights, added, strict=True)
            whole = [None if g is None else _with(g, w, 0.0, extra) for g, w, extra in parts]
            gradients = _clipped(whole, self._cfg.clip_norm, stacked=self._stacked)
            added = [None] * len(weights)
        for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            if gradient is None:
                continue
            slots = [self._rows(slot[index], weight) for slot in self._slots]
            if self._cfg.name in _ADAMS:
                self._adam(weight, gradient, slots, added[index])
            else:
                self._sgd(weight, gradient, slots, added[index])

    def _completed(
        self, weights: Sequence[Tensor], gradients: Sequence[Gradient]
    ) -> Sequence[Gradient]:
        """Return zeros for gradients that are missing, if anything is added to them."""
        if not (self._term or self._loss.l1 or self._loss.l2):
            return gradients
        pairs = zip(gradients, weights, strict=True)
        return [torch.zeros_like(w) if g is None else g for g, w in pairs]

    def _rows(self, state: Tensor, weight: Tensor) -> Tensor:
        """Return the rows of the clients that are still at work."""
        return state if state.shape == weight.shape else state[: len(weight)]

    def _sgd(
        self, weight: Tensor, gradient: Gradient, slots: list[Tensor], added: Tensor | None
    ) -> None:
        cfg = self._cfg
        rate = cfg.weight_decay
        if cfg.nesterov:
            dense = _with(gradient, weight, rate, added)
            momentum = slots[0].mul_(cfg.momentum).add_(dense)
            weight.sub_(dense.add(momentum, alpha=cfg.momentum), alpha=cfg.lr)
        elif slots:
            momentum = slots[0].mul_(cfg.momentum)
            if rate:
                momentum.add_(weight, alpha=rate)
            if added is not None:
                momentum.add_(added)
            _add(momentum, gradient, 1.0)
            weight.sub_(momentum, alpha=cfg.lr)
        else:
            if rate:  # not by a factor: few digits of 1 - 1e-6 are left in float32
                weight.add_(weight, alpha=-cfg.lr * rate)
            if added is not None:
                weight.sub_(added, alpha=cfg.lr)
            _add(weight, gradient, -cfg.lr)

    def _adam(
        self, weight: Tensor, gradient: Gradient, slots: list[Tensor], added: Tensor | None
    ) -> None:
        cfg = self._cfg
        if cfg.name == "adamw":
            dense = _with(gradient, weight, 0.0, added)
            weight.mul_(1 - cfg.lr * cfg.weight_decay)
        else:
            dense = _with(gradient, weight, cfg.weight_decay, added)
        first, second = slots
        beta_1, beta_2 = cfg.betas
        first.lerp_(dense, 1 - beta_1)
        second.mul_(beta_2).addcmul_(dense, dense, value=1 - beta_2)
        correction_1, correction_2 = 1 - beta_1**self._count, 1 - beta_2**self._count
        denominator = second.sqrt().div_(correction_2**0.5).add_(cfg.eps)
        weight.addcdiv_(first, denominator, value=-cfg.lr / correction_1)


def _penalised(gradient: Gradient, weight: Tensor, loss: LossConfig) -> Tensor:
    """Return the gradient with those of the penalties on the weights."""
    return _dense(gradient).add(weight, alpha=loss.l2).add(weight.sign(), alpha=loss.l1)


def _with(gradient: Gradient, weight: Tensor, decay: float, added: Tensor | None) -> Tensor:
    """Return the gradient with `decay` times the weight, and with what is added to it."""
    dense = _dense(gradient)
    if decay:
        dense = dense.add(weight, alpha=decay)
    return dense if added is None else dense + added


def _clipped(gradients: Sequence[Tensor | None], most: float, *, stacked: bool) -> list[Gradient]:
    """Return gradients scaled as `torch.nn.utils.clip_grad_norm_` does, a client at a time."""
    present = [g for g in gradients if g is not None]
    rows = len(present[0]) if stacked else 1
    squares = [g.square().reshape(rows, -1).sum(dim=1) for g in present]
    scale = (most / (torch.stack(squares).sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)  # [A] or [1]

    def scaled(gradient: Tensor | None) -> Tensor | None:
        if gradient is None or not stacked:
            return None if gradient is None else gradient * scale.view([1] * gradient.dim())
        return gradient * scale.view(-1, *[1] * (gradient.dim() - 1))

    return [scaled(g) for g in gradients]


def _dense(gradient: Gradient) -> Tensor:
    assert gradient is not None
    return gradient[0] @ gradient[1] if isinstance(gradient, tuple) else gradient


def _is_added_at_once(left: Tensor, right: Tensor) -> bool:
    rows, products = left.shape[-2:]
    return rows >= _ROWS and right.shape[-1] >= _COLUMNS and products <= _ADDED_AT_ONCE


def _add(target: Tensor, gradient: Gradient, scale: float) -> None:
    """Add `scale` times the gradient in place, if BLAS rounds once without forming the product."""
    assert gradient is not None
    if isinstance(gradient, tuple) and not _is_added_at_once(*gradient):
        gradient = _dense(gradient)
    if not isinstance(gradient, tuple):
        target.add_(gradient, alpha=scale)
    elif target.dim() == 2:
        target.addmm_(*gradient, alpha=scale)
    else:
        target.baddbmm_(*gradient, alpha=scale)
