"""Schema of a data-parallel run: its workers, their strategy, its steps and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from heliotrope.config.groups import PrivacyConfig

__all__ = ["DilocoConfig", "DistributedConfig", "EarlyStoppingConfig", "MeshConfig"]


@dataclass
class DilocoConfig:
    """How workers train by themselves: of `distributed.strategy` local_sgd and diloco.

    Every `local_steps` steps they exchange how far they went, as `exchange` says. With diloco,
    SGD with the other values takes the mean for its gradient; local_sgd moves to the mean.
    """

    local_steps: int = 32
    exchange: str = "fp32"
    lr: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True


@dataclass
class MeshConfig:
    """How `distributed.strategy=fsdp` divides the workers: `replicate` groups of `shard` each.

    The workers of a group hold one copy of the weights together, and groups average gradients:
    hybrid sharding (Zhao et al. 2023). While `shard` is null it follows from the workers.
    """

    replicate: int = 1
    shard: int | None = None


@dataclass
class EarlyStoppingConfig:
    """Ends a run whose `metric` has not improved in `patience` evaluations. Off while null."""

    metric: str | None = None
    patience: int = 3
    min_delta: float = 0.0
    mode: str = "auto"


@dataclass
class DistributedConfig:
    """Data-parallel training. `batch_size` is global: it is divided among the workers.

    `workers` is a number or, for an elastic run, two: see `heliotrope.config.workers`. The
    learning-rate schedule ends after `lr_horizon` epochs, or with the run if that is null.
    """

    launcher: str = "ray"
    workers: Any = 2
    strategy: str = "ddp"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    diloco: DilocoConfig = field(default_factory=DilocoConfig)
    cpus_per_worker: int | None = None
    epochs: int = 5
    batch_size: int = 32
    accumulation_steps: int = 1
    mixup: float = 0.0
    ema_decay: float | None = None
    precision: str = "fp32"
    compile: bool = False
    activation_checkpointing: bool = False
    sync_batchnorm: bool = False
    profile: bool = False
    lr_schedule: str = "constant"
    lr_warmup_steps: int = 0
    lr_decay_steps: int | None = None
    lr_decay_factor: float = 0.1
    lr_horizon: int | None = None
    max_failures: int = 0
    collective_timeout: float = 1800.0
    evaluate_every: int = 1
    log_every_steps: int | None = None
    checkpoint_every: int = 1
    checkpoint_every_steps: int | None = None
    sharded_checkpoints: bool = False
    keep_last: int = 3
    keep_best: int = 0
    best_metric: str | None = None
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    privacy: PrivacyConfig = field(default_factory=lambda: PrivacyConfig("none"))
