"""Schemas of the optimizers."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

__all__ = ["AdafactorConfig", "AdamConfig", "OptimizerConfig", "SgdConfig"]


@dataclass
class OptimizerConfig:
    """What updates the weights: of the model in distributed mode, of each client in federated."""

    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = 0.0
    clip_norm: float | None = None  # of the gradient of all weights together, before each step


@dataclass
class SgdConfig(OptimizerConfig):
    """Stochastic gradient descent as in `torch.optim.SGD`."""

    momentum: float = 0.0
    nesterov: bool = False


@dataclass
class AdamConfig(OptimizerConfig):
    """`torch.optim.Adam` (`name: adam`) or `torch.optim.AdamW` (`name: adamw`)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@dataclass
class AdafactorConfig(OptimizerConfig):
    """`torch.optim.Adafactor` (Shazeer and Stern 2018): Adam in less memory."""

    beta2_decay: float = -0.8
