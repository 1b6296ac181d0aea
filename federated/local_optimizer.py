"""torch.optim's SGD, Adam and AdamW as in-place updates of plain tensors, alone or stacked.

Written out because a client lives for a few steps only: making a `torch.optim` object for it
costs more than the steps, and the fused updates below need the gradient's factors. FedProx's
pull towards the global weights is part of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heliotrope.config import AdamConfig, OptimizerConfig, SgdConfig

from .capture import Gradient

__all__ = ["LocalOptimizer"]


class LocalOptimizer:
    """State of one client's optimizer, or of a stack of clients that step together.

    `start` are the global weights, `weights` those trained: [*shape], or [K, *shape] stacked.
    """

    def __init__(
        self,
        cfg: OptimizerConfig,
        start: Sequence[Tensor],
        weights: Sequence[Tensor],
        proximal_mu: float,
    ) -> None:
        self._cfg = cfg
        self._start = start
        self._mu = proximal_mu
        self._count = 0
        slots = 2 if isinstance(cfg, AdamConfig) else int(getattr(cfg, "momentum", 0.0) > 0)
        self._slots = [[torch.zeros_like(p) for p in weights] for _ in range(slots)]

    def step(self, weights: Sequence[Tensor], gradients: Sequence[Gradient]) -> None:
        """Update `weights` in place; with a stack, its first rows, as many as there are."""
        self._count += 1
        mu = self._mu
        if self._cfg.clip_norm is not None:
            if mu:  # its pull is a part of what is clipped
                pairs = zip(weights, gradients, self._start, strict=True)
                gradients = [_dense(g).add(w - start, alpha=mu) for w, g, start in pairs]
                mu = 0.0
            stacked = weights[0].dim() > self._start[0].dim()
            gradients = _clipped(gradients, self._cfg.clip_norm, stacked=stacked)
        for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            slots = [slot[index] for slot in self._slots]
            if slots and slots[0].shape != weight.shape:
                slots = [slot[: len(weight)] for slot in slots]
            if isinstance(self._cfg, AdamConfig):
                self._adam(self._cfg, weight, gradient, slots, (self._start[index], mu))
            else:
                assert isinstance(self._cfg, SgdConfig)
                self._sgd(self._cfg, weight, gradient, slots, (self._start[index], mu))

    def _sgd(
        self,
        cfg: SgdConfig,
        weight: Tensor,
        gradient: Gradient,
        slots: list[Tensor],
        proximal: tuple[Tensor, float],
    ) -> None:
        start, mu = proximal
        pull = cfg.weight_decay + mu  # of the weight itself, in the gradient
        if cfg.nesterov:
            dense = _pulled(_dense(gradient), weight, proximal, cfg.weight_decay)
            momentum = slots[0].mul_(cfg.momentum).add_(dense)
            weight.sub_(dense.add(momentum, alpha=cfg.momentum), alpha=cfg.lr)
        elif slots:
            momentum = slots[0].mul_(cfg.momentum)
            if pull:
                momentum.add_(weight, alpha=pull)
            if mu:
                momentum.sub_(start, alpha=mu)
            _add(momentum, gradient, 1.0)
            weight.sub_(momentum, alpha=cfg.lr)
        else:
            if pull:
                weight.mul_(1 - cfg.lr * pull)
            if mu:
                weight.add_(start, alpha=cfg.lr * mu)
            _add(weight, gradient, -cfg.lr)

    def _adam(
        self,
        cfg: AdamConfig,
        weight: Tensor,
        gradient: Gradient,
        slots: list[Tensor],
        proximal: tuple[Tensor, float],
    ) -> None:
        decoupled = cfg.name == "adamw"
        decay = 0.0 if decoupled else cfg.weight_decay
        dense = _pulled(_dense(gradient), weight, proximal, decay)
        if decoupled and cfg.weight_decay:
            weight.mul_(1 - cfg.lr * cfg.weight_decay)
        first, second = slots
        beta_1, beta_2 = cfg.betas
        first.lerp_(dense, 1 - beta_1)
        second.mul_(beta_2).addcmul_(dense, dense, value=1 - beta_2)
        correction_1, correction_2 = 1 - beta_1**self._count, 1 - beta_2**self._count
        denominator = second.sqrt().div_(correction_2**0.5).add_(cfg.eps)
        weight.addcdiv_(first, denominator, value=-cfg.lr / correction_1)


def _pulled(dense: Tensor, weight: Tensor, proximal: tuple[Tensor, float], decay: float) -> Tensor:
    """Return the gradient with weight decay and the proximal term."""
    start, mu = proximal
    if decay:
        dense = dense.add(weight, alpha=decay)
    if mu:
        dense = dense.add(weight - start, alpha=mu)
    return dense


def _clipped(gradients: Sequence[Gradient], most: float, *, stacked: bool) -> list[Gradient]:
    """Return gradients scaled as `torch.nn.utils.clip_grad_norm_` does, a client at a time."""
    norm = torch.stack([_square(g, stacked=stacked) for g in gradients]).sum(dim=0).sqrt()
    scale = (most / (norm + 1e-6)).clamp(max=1.0)  # [] or [A]

    def scaled(tensor: Tensor) -> Tensor:
        return tensor * scale.view(-1, *[1] * (tensor.dim() - 1)) if stacked else tensor * scale

    return [(scaled(g[0]), g[1]) if isinstance(g, tuple) else scaled(g) for g in gradients]


def _square(gradient: Gradient, *, stacked: bool) -> Tensor:
    """Return the sum of squares, [] or [A]; of a product without forming it.

    |LR|^2 = sum((L'L) * (RR')): two products of the size of a batch.
    """
    if isinstance(gradient, tuple):
        left, right = gradient
        squares = (left.mT @ left) * (right @ right.mT)
    else:
        squares = gradient.square()
    return squares.flatten(1).sum(dim=1) if stacked else squares.sum()


def _dense(gradient: Gradient) -> Tensor:
    return gradient[0] @ gradient[1] if isinstance(gradient, tuple) else gradient


def _add(target: Tensor, gradient: Gradient, scale: float) -> None:
    """Add `scale` times the gradient in place, without forming a product of factors."""
    if not isinstance(gradient, tuple):
        target.add_(gradient, alpha=scale)
    elif target.dim() == 2:
        target.addmm_(*gradient, alpha=scale)
    else:
        target.baddbmm_(*gradient, alpha=scale)
