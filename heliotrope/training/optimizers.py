"""torch's optimizers by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from heliotrope import registry
from heliotrope.config import OptimizerConfig

__all__ = [
    "GroupRates",
    "adafactor",
    "adam",
    "adamw",
    "build_optimizer",
    "sgd",
]

Parameters = Iterable[nn.Parameter]


def build_optimizer(cfg: OptimizerConfig, parameters: Parameters) -> Optimizer:
    """Return the optimizer that `cfg` names, over `parameters`, which it is given as a list."""
    given = list(parameters)  # a plug-in may go through them more than once, for several groups
    built: Optimizer = registry.entry("optimizer", cfg.name).build(vars(cfg), params=given)
    return built


class GroupRates:
    """The learning rates of an optimizer's groups as it was made, which schedules multiply.

    So a group that a plug-in has given a rate of its own keeps it in proportion to the others.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]

    def multiply(self, factor: float) -> None:
        """Set each group's rate to `factor` times that with which it was made."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor


def sgd(
    params: Parameters,
    *,
    lr: float = 0.1,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> Optimizer:
    """Stochastic gradient descent as in `torch.optim.SGD`.

    Parameters
    ----------
    momentum
        The share of the last step's direction that is kept.
    nesterov
        Whether the gradient is looked at ahead, as Nesterov's momentum does.
    """
    return torch.optim.SGD(
        params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )


def adam(
    params: Parameters,
    *,
    lr: float = 0.001,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    """Adam as in `torch.optim.Adam` (Kingma and Ba 2015).

    Parameters
    ----------
    betas
        How much of the means of gradients and of their squares is kept at a step.
    eps
        Added to the divisor of a step.
    """
    return torch.optim.Adam(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def adamw(
    params: Parameters,
    *,
    lr: float = 0.001,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    """Adam with weight decay apart from the gradient, as in `torch.optim.AdamW`.

    Parameters
    ----------
    betas
        How much of the means of gradients and of their squares is kept at a step.
    eps
        Added to the divisor of a step.
    """
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def adafactor(
    params: Parameters, *, lr: float = 0.01, weight_decay: float = 0.0, beta2_decay: float = -0.8
) -> Optimizer:
    """Adam in less memory, as in `torch.optim.Adafactor` (Shazeer and Stern 2018).

    Parameters
    ----------
    beta2_decay
        The power of the step's number with which less of the squares' mean is kept.
    """
    return torch.optim.Adafactor(params, lr=lr, beta2_decay=beta2_decay, weight_decay=weight_decay)
