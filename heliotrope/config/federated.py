"""Schema of a federated run: its rounds and its clients."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from heliotrope.config.groups import (
    AttackConfig,
    PartitionConfig,
    PrivacyConfig,
    SecureAggregationConfig,
    StrategyConfig,
)

__all__ = ["FederatedConfig"]


@dataclass
class FederatedConfig:
    """Federated training. `batch_size` is per client; null takes a client's data whole.

    The clients' learning rate follows `lr_schedule` over `lr_horizon` rounds, or over all rounds
    if that is null; it is the same for all local steps of a round.
    """

    rounds: int = 10
    clients_per_round: int = 10
    local_epochs: int = 1
    batch_size: int | None = 10
    pool: str = "inprocess"
    workers: int = 1
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None
    client_training: str = "auto"
    stack_size: int | None = None
    lanes: int | None = None
    client_timeout: float | None = None
    clip_update_norm: float | None = None
    client_momentum: float = 0.0
    bucket_size: int = 1
    lr_schedule: str = "constant"
    lr_warmup_rounds: int = 0
    lr_decay_rounds: int | None = None
    lr_decay_factor: float = 0.1
    lr_horizon: int | None = None
    reduce: str = "auto"
    evaluate_every: int = 1
    checkpoint_every: int = 10
    quorum: float = 1.0
    holdout_fraction: float = 0.0
    evaluate_clients: int | None = None
    evaluate_fraction: float | None = None
    client_rows_every: int | None = None
    partition: PartitionConfig = MISSING
    strategy: StrategyConfig = MISSING
    privacy: PrivacyConfig = field(default_factory=lambda: PrivacyConfig("none"))
    attack: AttackConfig = field(default_factory=lambda: AttackConfig("none"))
    secure_aggregation: SecureAggregationConfig = field(
        default_factory=lambda: SecureAggregationConfig("none")
    )
