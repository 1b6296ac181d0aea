"""Schema of a federated run: its rounds, its clients, and the server's strategy."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

__all__ = [
    "DirichletConfig",
    "FedAdagradConfig",
    "FedAvgMConfig",
    "FedOptConfig",
    "FedProxConfig",
    "FederatedConfig",
    "KrumConfig",
    "MultiKrumConfig",
    "NaturalConfig",
    "PartitionConfig",
    "QFedAvgConfig",
    "QuantityConfig",
    "ShardsConfig",
    "StrategyConfig",
    "TrimmedConfig",
]


@dataclass
class PartitionConfig:
    """How the training examples are divided among the clients."""

    name: str = MISSING
    clients: int | None = None


@dataclass
class DirichletConfig(PartitionConfig):
    """Label shares drawn from Dirichlet(alpha); no client below `min_size` examples."""

    alpha: float = 0.3
    min_size: int = 1


@dataclass
class ShardsConfig(PartitionConfig):
    """Sorted by label, cut into equal shards, `shards_per_client` to each (FedAvg paper)."""

    shards_per_client: int = 2


@dataclass
class QuantityConfig(PartitionConfig):
    """Client sizes drawn from Dirichlet(alpha), labels mixed; none below `min_size`."""

    alpha: float = 0.5
    min_size: int = 1


@dataclass
class NaturalConfig(PartitionConfig):
    """One client for each value of the data's own grouping key, such as a hospital."""


@dataclass
class StrategyConfig:
    """A server strategy; `name` is a key of `federated.strategies.STRATEGIES`."""

    name: str = MISSING


@dataclass
class FedProxConfig(StrategyConfig):
    """FedAvg with (mu/2)||w - w_global||^2 added to each client's loss (Li et al. 2020)."""

    proximal_mu: float = 0.01


@dataclass
class FedOptConfig(StrategyConfig):
    """FedAdam and FedYogi (Reddi et al. 2021); `eta` is the server's learning rate."""

    eta: float = 0.01
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3


@dataclass
class FedAdagradConfig(StrategyConfig):
    """FedAdagrad (Reddi et al. 2021); `eta` is the server's learning rate."""

    eta: float = 0.01
    tau: float = 1e-3


@dataclass
class FedAvgMConfig(StrategyConfig):
    """FedAvg with server momentum (Hsu et al. 2019)."""

    server_learning_rate: float = 1.0
    server_momentum: float = 0.9


@dataclass
class TrimmedConfig(StrategyConfig):
    """Coordinate-wise mean without the `beta` share at each end (Yin et al. 2018)."""

    beta: float = 0.2


@dataclass
class KrumConfig(StrategyConfig):
    """Krum (Blanchard et al. 2017) and Bulyan (El Mhamdi et al. 2018)."""

    num_malicious_nodes: int = 0


@dataclass
class MultiKrumConfig(KrumConfig):
    """Mean of the `num_nodes_to_select` updates with the best Krum scores."""

    num_nodes_to_select: int = 1


@dataclass
class QFedAvgConfig(StrategyConfig):
    """q-FedAvg (Li et al. 2020); the client's learning rate is `optimizer.lr`."""

    q: float = 0.1


@dataclass
class FederatedConfig:
    """Federated training. `batch_size` is per client; null takes a client's data whole."""

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
    reduce: str = "auto"
    evaluate_every: int = 1
    checkpoint_every: int = 10
    quorum: float = 1.0
    holdout_fraction: float = 0.0
    partition: PartitionConfig = MISSING
    strategy: StrategyConfig = MISSING
