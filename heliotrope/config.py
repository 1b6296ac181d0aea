"""The typed schema of an experiment, and `load`.

Values live in `conf/` (YAML); types and allowed names live here. A config is converted once,
at the entrypoint, into a plain `Run`; nothing below sees a `DictConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from heliotrope.config_federated import (
    DirichletConfig,
    FedAdagradConfig,
    FedAvgMConfig,
    FederatedConfig,
    FedOptConfig,
    FedProxConfig,
    KrumConfig,
    MultiKrumConfig,
    NaturalConfig,
    PartitionConfig,
    QFedAvgConfig,
    QuantityConfig,
    ShardsConfig,
    StrategyConfig,
    TrimmedConfig,
)
from heliotrope.config_optimizer import (
    AdafactorConfig,
    AdamConfig,
    OptimizerConfig,
    SgdConfig,
)
from heliotrope.config_training import (
    DilocoConfig,
    EarlyStoppingConfig,
    LossConfig,
    TrackingConfig,
)
from heliotrope.errors import ConfigError

__all__ = [
    "AdafactorConfig",
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
    """Convolution, activation and 2x2 max-pooling per entry of `channels`, then dense layers.

    While training, images are moved by up to `shift` pixels, and mirrored if `flip` is set.
    """

    channels: list[int] = field(default_factory=lambda: [32, 64])
    kernel_size: int = 5
    hidden: list[int] = field(default_factory=lambda: [512])
    activation: str = "relu"
    dropout: float = 0.0
    flip: bool = False
    shift: int = 0


@dataclass
class DataConfig:
    """A dataset and how it is prepared; `name` is a key of `heliotrope.data.LOADERS`."""

    name: str = MISSING
    dir: str | None = None
    download: bool = True
    normalize: bool = True
    validation_fraction: float = 0.0


@dataclass
class TargetConfig:
    """A metric to reach, and whether to stop there. Off while `metric` is null."""

    metric: str | None = None
    value: float | None = None
    stop: bool = True


# --- distributed --------------------------------------------------------------------------


@dataclass
class DistributedConfig:
    """Data-parallel training. `batch_size` is global: it is divided among the workers.

    `workers` is a number or, for an elastic run, two: see `heliotrope.elastic`.
    """

    launcher: str = "ray"
    workers: Any = 2
    strategy: str = "ddp"
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
    profile: bool = False
    lr_schedule: str = "constant"
    lr_warmup_steps: int = 0
    lr_decay_steps: int | None = None
    lr_decay_factor: float = 0.1
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


# --- the experiment -----------------------------------------------------------------------


@dataclass
class Run:
    """One experiment: everything both modes need, fully resolved."""

    name: str = "custom"
    seed: int = 0
    resume: bool = False
    device: str = "auto"
    evaluation_batch_size: int = 256
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    loss: LossConfig = field(default_factory=LossConfig)
    distributed: DistributedConfig = MISSING
    federated: FederatedConfig = MISSING
    target: TargetConfig = field(default_factory=TargetConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


# Group -> choice -> schema. The same table fills Hydra's ConfigStore and re-types a saved config.
SCHEMAS: dict[str, dict[str, type[Any]]] = {
    "model": {"mlp": MlpConfig, "cnn": CnnConfig},
    "data": {"digits": DataConfig, "mnist": DataConfig, "fashion_mnist": DataConfig},
    "optimizer": {
        "sgd": SgdConfig,
        "adam": AdamConfig,
        "adamw": AdamConfig,
        "adafactor": AdafactorConfig,
    },
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
    from heliotrope.config_checks import check  # here: it needs the classes above

    run = cast(Run, OmegaConf.to_object(cfg))
    check(run, mode)
    return run


def from_resolved(path: Path) -> Run:
    """Read back the resolved `config.yaml` of a run directory, typed, without Hydra.

    Raises `ConfigError` naming `path` if it cannot be read or is no such config.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    return from_yaml(text, str(path))


def from_yaml(text: str, source: str = "config") -> Run:
    """Return the `Run` that a resolved YAML text holds; errors name `source`."""
    try:
        return _typed(OmegaConf.create(text), source)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(
            f"{source} is not the config of a run of this version: {str(error).splitlines()[0]}."
        ) from error


def _typed(values: object, source: str) -> Run:
    if not isinstance(values, DictConfig):
        raise ConfigError(f"{source} is not the config of a run: it holds no keys and values.")
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
