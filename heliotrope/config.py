"""The typed schema of an experiment, the checks across its fields, and `load`.

Values live in `conf/` (YAML); types and allowed names live here. A config is converted once,
at the entrypoint, into a plain `Run`; nothing below sees a `DictConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from heliotrope.errors import ConfigError, closest

__all__ = [
    "AdamConfig",
    "CnnConfig",
    "DataConfig",
    "DistributedConfig",
    "FederatedConfig",
    "MlpConfig",
    "Mode",
    "ModelConfig",
    "OptimizerConfig",
    "PartitionConfig",
    "Run",
    "SgdConfig",
    "StrategyConfig",
    "TargetConfig",
    "check",
    "conf_dir",
    "from_resolved",
    "from_yaml",
    "load",
    "register",
]

Mode = Literal["distributed", "federated"]


# --- shared by both modes -----------------------------------------------------------------


@dataclass
class ModelConfig:
    """A model family; `name` is a key of `heliotrope.models.BUILDERS`."""

    name: str = MISSING


@dataclass
class MlpConfig(ModelConfig):
    """Fully connected layers on the flattened input."""

    hidden: list[int] = field(default_factory=lambda: [128])
    activation: str = "relu"
    dropout: float = 0.0


@dataclass
class CnnConfig(ModelConfig):
    """Convolution, activation and 2x2 max-pooling per entry of `channels`, then dense layers."""

    channels: list[int] = field(default_factory=lambda: [32, 64])
    kernel_size: int = 5
    hidden: list[int] = field(default_factory=lambda: [512])
    activation: str = "relu"
    dropout: float = 0.0


@dataclass
class DataConfig:
    """A dataset and how it is prepared; `name` is a key of `heliotrope.data.LOADERS`."""

    name: str = MISSING
    dir: str | None = None
    download: bool = True
    normalize: bool = True
    validation_fraction: float = 0.0


@dataclass
class OptimizerConfig:
    """What updates the weights: of the model in distributed mode, of each client in federated."""

    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = 0.0


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
class TargetConfig:
    """A metric to reach, and whether to stop there. Off while `metric` is null."""

    metric: str | None = None
    value: float | None = None
    stop: bool = True


# --- distributed --------------------------------------------------------------------------


@dataclass
class DistributedConfig:
    """Data-parallel training. `batch_size` is global: it is divided among the workers."""

    launcher: str = "ray"
    workers: int = 2
    cpus_per_worker: int | None = None
    epochs: int = 5
    batch_size: int = 32
    max_failures: int = 0
    evaluate_every: int = 1
    checkpoint_every: int = 1


# --- federated ----------------------------------------------------------------------------


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

    key: str | None = None


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
    client_training: str = "auto"
    reduce: str = "auto"
    evaluate_every: int = 1
    checkpoint_every: int = 10
    quorum: float = 1.0
    holdout_fraction: float = 0.0
    partition: PartitionConfig = MISSING
    strategy: StrategyConfig = MISSING


# --- the experiment -----------------------------------------------------------------------


@dataclass
class Run:
    """One experiment: everything both modes need, fully resolved."""

    name: str = "custom"
    seed: int = 0
    resume: bool = False
    device: str = "auto"
    evaluation_batch_size: int = 1024
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    distributed: DistributedConfig = MISSING
    federated: FederatedConfig = MISSING
    target: TargetConfig = field(default_factory=TargetConfig)


# Group -> choice -> schema. The same table fills Hydra's ConfigStore and re-types a saved config.
SCHEMAS: dict[str, dict[str, type[Any]]] = {
    "model": {"mlp": MlpConfig, "cnn": CnnConfig},
    "data": {"digits": DataConfig, "mnist": DataConfig, "fashion_mnist": DataConfig},
    "optimizer": {"sgd": SgdConfig, "adam": AdamConfig, "adamw": AdamConfig},
    "federated/partition": {
        "iid": PartitionConfig,
        "dirichlet": DirichletConfig,
        "shards": ShardsConfig,
        "quantity": QuantityConfig,
        "natural": NaturalConfig,
    },
    "federated/strategy": {
        "fedavg": StrategyConfig,
        "fedprox": FedProxConfig,
        "fedadam": FedOptConfig,
        "fedyogi": FedOptConfig,
        "fedadagrad": FedAdagradConfig,
        "fedavgm": FedAvgMConfig,
        "fedmedian": StrategyConfig,
        "fedtrimmedavg": TrimmedConfig,
        "krum": KrumConfig,
        "multikrum": MultiKrumConfig,
        "bulyan": KrumConfig,
        "qfedavg": QFedAvgConfig,
    },
}


def conf_dir() -> Path:
    """Return the folder of YAML values: `heliotrope/conf` in a wheel, `conf` in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register() -> None:
    """Put every schema into Hydra's ConfigStore; a YAML choice `x` extends `x_schema`."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=Run)
    store.store(group="distributed", name="distributed_schema", node=DistributedConfig)
    store.store(group="federated", name="federated_schema", node=FederatedConfig)
    for group, choices in SCHEMAS.items():
        for name, schema in choices.items():
            store.store(group=group, name=f"{name}_schema", node=schema(name=name))


def load(cfg: DictConfig, mode: Mode) -> Run:
    """Convert a composed config into a checked `Run`.

    Raises `ConfigError` naming the key, its value and the remedy.
    """
    run = cast(Run, OmegaConf.to_object(cfg))
    check(run, mode)
    return run


def from_resolved(path: Path) -> Run:
    """Read back the resolved `config.yaml` of a run directory, typed, without Hydra."""
    return from_yaml(path.read_text(), str(path))


def from_yaml(text: str, source: str = "config") -> Run:
    """Return the `Run` that a resolved YAML text holds; errors name `source`."""
    values = cast(DictConfig, OmegaConf.create(text))
    typed = OmegaConf.structured(Run)
    typed.distributed = OmegaConf.structured(DistributedConfig)
    typed.federated = OmegaConf.structured(FederatedConfig)
    for group, choices in SCHEMAS.items():
        key = group.replace("/", ".")
        name = OmegaConf.select(values, f"{key}.name")
        if name not in choices:
            raise ConfigError(f"{source}: {key}.name={name} is not known to this version.")
        OmegaConf.update(typed, key, OmegaConf.structured(choices[name]), merge=False)
    return cast(Run, OmegaConf.to_object(OmegaConf.merge(typed, values)))


# --- checks -------------------------------------------------------------------------------


def _choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"{key}={value} is not one of {', '.join(allowed)}.{closest(value, allowed)}"
        )


def _at_least(key: str, value: float | None, least: float) -> None:
    if value is not None and not value >= least:
        raise ConfigError(f"{key}={value} must be at least {least:g}.")


def _within(key: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not (low < value if open_low else low <= value) or not value <= high:
        left = "(" if open_low else "["
        raise ConfigError(f"{key}={value} must lie in {left}{low:g}, {high:g}].")


def _above(key: str, value: float | None, bound: float) -> None:
    if value is not None and not value > bound:
        raise ConfigError(f"{key}={value} must be greater than {bound:g}.")


def check(run: Run, mode: Mode) -> None:
    """Check what types cannot: allowed names, ranges and relations between fields."""
    _check_shared(run)
    if mode == "distributed":
        _check_distributed(run.distributed)
    else:
        _check_federated(run.federated)


def _check_shared(run: Run) -> None:
    _at_least("seed", run.seed, 0)
    _choice("device", run.device, ("auto", "cpu", "cuda"))
    _at_least("evaluation_batch_size", run.evaluation_batch_size, 1)
    _above("optimizer.lr", run.optimizer.lr, 0)
    _at_least("optimizer.weight_decay", run.optimizer.weight_decay, 0)
    if isinstance(run.optimizer, SgdConfig):
        _within("optimizer.momentum", run.optimizer.momentum, 0, 1)
        if run.optimizer.nesterov and run.optimizer.momentum == 0:
            raise ConfigError(
                "optimizer.nesterov=true needs momentum. Set optimizer.momentum, e.g. 0.9."
            )
    if not 0 <= run.data.validation_fraction < 1:
        raise ConfigError(
            f"data.validation_fraction={run.data.validation_fraction} must lie in [0, 1)."
        )
    if (run.target.metric is None) != (run.target.value is None):
        missing = "target.value" if run.target.value is None else "target.metric"
        raise ConfigError(f"A target needs both target.metric and target.value. Set {missing}.")
    if run.target.metric is not None:
        _choice("target.metric", run.target.metric, _target_metrics(run))


def _target_metrics(run: Run) -> tuple[str, ...]:
    splits = ("test", "validation") if run.data.validation_fraction else ("test",)
    return tuple(f"{split}/{name}" for split in splits for name in ("accuracy", "loss", "macro_f1"))


def _check_distributed(cfg: DistributedConfig) -> None:
    _choice("distributed.launcher", cfg.launcher, ("inline", "torchrun", "ray"))
    for name in ("workers", "epochs", "batch_size", "evaluate_every", "checkpoint_every"):
        _at_least(f"distributed.{name}", getattr(cfg, name), 1)
    _at_least("distributed.cpus_per_worker", cfg.cpus_per_worker, 1)
    _at_least("distributed.max_failures", cfg.max_failures, 0)
    if cfg.launcher == "inline" and cfg.workers != 1:
        raise ConfigError(
            f"distributed.workers={cfg.workers} has no effect with distributed.launcher=inline, "
            "which is one process. Set distributed.workers=1 or distributed.launcher=ray."
        )
    if cfg.batch_size < cfg.workers:
        raise ConfigError(
            f"distributed.batch_size={cfg.batch_size} is global and smaller than "
            f"distributed.workers={cfg.workers}. Raise the batch size or use fewer workers."
        )


def _check_federated(cfg: FederatedConfig) -> None:
    _choice("federated.pool", cfg.pool, ("inprocess", "ray"))
    _choice("federated.client_training", cfg.client_training, ("auto", "sequential", "batched"))
    _choice("federated.reduce", cfg.reduce, ("auto", "worker", "none"))
    for name in (
        "rounds",
        "clients_per_round",
        "local_epochs",
        "batch_size",
        "workers",
        "evaluate_every",
        "checkpoint_every",
    ):
        _at_least(f"federated.{name}", getattr(cfg, name), 1)
    _within("federated.quorum", cfg.quorum, 0, 1, open_low=True)
    if not 0 <= cfg.holdout_fraction < 1:
        raise ConfigError(f"federated.holdout_fraction={cfg.holdout_fraction} must lie in [0, 1).")
    if cfg.pool == "inprocess" and cfg.workers != 1:
        raise ConfigError(
            f"federated.workers={cfg.workers} has no effect with federated.pool=inprocess. "
            "Set federated.pool=ray or federated.workers=1."
        )
    _check_partition(cfg)


def _check_partition(cfg: FederatedConfig) -> None:
    part = cfg.partition
    key = "federated.partition"
    if part.clients is None and not isinstance(part, NaturalConfig):
        raise ConfigError(f"{key}.clients is not set. Set it to the number of clients.")
    _at_least(f"{key}.clients", part.clients, 1)
    if isinstance(part, DirichletConfig | QuantityConfig):
        _above(f"{key}.alpha", part.alpha, 0)
        _at_least(f"{key}.min_size", part.min_size, 1)
    if isinstance(part, ShardsConfig):
        _at_least(f"{key}.shards_per_client", part.shards_per_client, 1)
    if part.clients is not None and cfg.clients_per_round > part.clients:
        raise ConfigError(
            f"federated.clients_per_round={cfg.clients_per_round} is more than the "
            f"{part.clients} clients of {key}.clients. Lower the one or raise the other."
        )
