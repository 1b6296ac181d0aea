"""torch.optim's SGD, Adam and AdamW as in-place updates of plain tensors, alone or stacked.

Written out because a client lives for a few steps only: making a `torch.optim` object for it
costs more than the steps, and the fused updates below need the gradient's factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heliotrope.config import AdamConfig, SgdConfig
from heliotrope.config_training import LossConfig

from .capture import Gradient
from .client import Clients

__all__ = ["LocalOptimizer"]


Pull = tuple[float, Tensor | None]
"""(a, b): what is added to a gradient at weights w besides the data's, a * w + b."""


class LocalOptimizer:
    """State of one client's optimizer, or of a stack of clients that step together.

    `weights` are those trained, [*shape], or [K, *shape] stacked. To each gradient is added
    `proximal_mu` times the way from the global weights `start`, and the client's control
    variate, shaped as `weights`, if there are any.
    """

    def __init__(
        self,
        clients: Clients,
        start: Sequence[Tensor],
        weights: Sequence[Tensor],
        proximal_mu: float,
        controls: Sequence[Tensor] | None = None,
    ) -> None:
        self._cfg = cfg = clients.optimizer
        self._loss = clients.loss
        self._stacked = weights[0].dim() > start[0].dim()
        self._mu = proximal_mu
        self._constants: Sequence[Tensor] | None = controls
        if proximal_mu:
            pulls = [w * -proximal_mu for w in start]  # [*shape], the same for all of a stack
            if controls is not None:
                pulls = [pull + control for pull, control in zip(pulls, controls, strict=True)]
            self._constants = [c.expand_as(w) for c, w in zip(pulls, weights, strict=True)]
        self._count = 0
        slots = 2 if isinstance(cfg, AdamConfig) else int(getattr(cfg, "momentum", 0.0) > 0)
        self._slots = [[torch.zeros_like(p) for p in weights] for _ in range(slots)]

    def step(self, weights: Sequence[Tensor], gradients: Sequence[Gradient]) -> None:
        """Update `weights` in place; with a stack, its first rows, as many as there are."""
        self._count += 1
        if self._loss.l1 or self._loss.l2:
            pairs = zip(weights, gradients, strict=True)
            gradients = [_penalised(g, w, self._loss) for w, g in pairs]
        pulls = [self._pull(index, weight) for index, weight in enumerate(weights)]
        if self._cfg.clip_norm is not None:
            # What pulls at the weights is a part of what is clipped.
            parts = zip(gradients, weights, pulls, strict=True)
            whole = [_pulled(_dense(g), weight, pull) for g, weight, pull in parts]
            gradients = _clipped(whole, self._cfg.clip_norm, stacked=self._stacked)
            pulls = [(0.0, None)] * len(weights)
        for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            slots = [self._rows(slot[index], weight) for slot in self._slots]
            if isinstance(self._cfg, AdamConfig):
                self._adam(self._cfg, weight, gradient, slots, pulls[index])
            else:
                assert isinstance(self._cfg, SgdConfig)
                self._sgd(self._cfg, weight, gradient, slots, pulls[index])

    def _pull(self, index: int, weight: Tensor) -> Pull:
        if self._constants is None:
            return self._mu, None
        return self._mu, self._rows(self._constants[index], weight)

    def _rows(self, state: Tensor, weight: Tensor) -> Tensor:
        """Return the rows of the clients that are still at work."""
        return state if state.shape == weight.shape else state[: len(weight)]

    def _sgd(
        self, cfg: SgdConfig, weight: Tensor, gradient: Gradient, slots: list[Tensor], pull: Pull
    ) -> None:
        rate, constant = pull[0] + cfg.weight_decay, pull[1]
        if cfg.nesterov:
            dense = _pulled(_dense(gradient), weight, (rate, constant))
            momentum = slots[0].mul_(cfg.momentum).add_(dense)
            weight.sub_(dense.add(momentum, alpha=cfg.momentum), alpha=cfg.lr)
        elif slots:
            momentum = slots[0].mul_(cfg.momentum)
            if rate:
                momentum.add_(weight, alpha=rate)
            if constant is not None:
                momentum.add_(constant)
            _add(momentum, gradient, 1.0)
            weight.sub_(momentum, alpha=cfg.lr)
        else:
            if rate:
                weight.mul_(1 - cfg.lr * rate)
            if constant is not None:
                weight.sub_(constant, alpha=cfg.lr)
            _add(weight, gradient, -cfg.lr)

    def _adam(
        self, cfg: AdamConfig, weight: Tensor, gradient: Gradient, slots: list[Tensor], pull: Pull
    ) -> None:
        if cfg.name == "adamw":
            dense = _pulled(_dense(gradient), weight, pull)
            weight.mul_(1 - cfg.lr * cfg.weight_decay)
        else:
            dense = _pulled(_dense(gradient), weight, (pull[0] + cfg.weight_decay, pull[1]))
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


def _pulled(dense: Tensor, weight: Tensor, pull: Pull) -> Tensor:
    """Return the gradient with what is added to it."""
    rate, constant = pull
    if rate:
        dense = dense.add(weight, alpha=rate)
    return dense if constant is None else dense + constant


def _clipped(gradients: Sequence[Tensor], most: float, *, stacked: bool) -> list[Gradient]:
    """Return gradients scaled as `torch.nn.utils.clip_grad_norm_` does, a client at a time."""
    rows = len(gradients[0]) if stacked else 1
    squares = [g.square().reshape(rows, -1).sum(dim=1) for g in gradients]
    scale = (most / (torch.stack(squares).sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)  # [A] or [1]
    return [g * scale.view(-1, *[1] * (g.dim() - 1)) if stacked else g * scale for g in gradients]


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
