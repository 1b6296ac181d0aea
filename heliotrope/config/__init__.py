"""The typed configuration of an experiment: schema, loading, checks, explained errors."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from heliotrope.config.audit import AuditConfig
from heliotrope.config.cluster import ClusterConfig
from heliotrope.config.data import DataConfig
from heliotrope.config.distributed import (
    DilocoConfig,
    DistributedConfig,
    EarlyStoppingConfig,
    MeshConfig,
)
from heliotrope.config.federated import FederatedConfig
from heliotrope.config.groups import (
    GROUPS,
    ModelConfig,
    OptimizerConfig,
    PartitionConfig,
    StrategyConfig,
    TaskConfig,
    choice_class,
    choice_names,
    chosen,
)
from heliotrope.config.loading import from_resolved, from_yaml, load, without_hydra
from heliotrope.config.run import Mode, Run
from heliotrope.config.search import SearchConfig
from heliotrope.config.sweep import SweepConfig
from heliotrope.config.training import LossConfig, TargetConfig, TrackingConfig

if TYPE_CHECKING:
    from heliotrope.config.experiment_files import left_out, load_plugins, register_for
    from heliotrope.config.schemas import conf_dir, defaults, register

__all__ = [
    "GROUPS",
    "AuditConfig",
    "ClusterConfig",
    "DataConfig",
    "DilocoConfig",
    "DistributedConfig",
    "EarlyStoppingConfig",
    "FederatedConfig",
    "LossConfig",
    "MeshConfig",
    "Mode",
    "ModelConfig",
    "OptimizerConfig",
    "PartitionConfig",
    "Run",
    "SearchConfig",
    "StrategyConfig",
    "SweepConfig",
    "TargetConfig",
    "TaskConfig",
    "TrackingConfig",
    "choice_class",
    "choice_names",
    "chosen",
    "conf_dir",
    "defaults",
    "from_resolved",
    "from_yaml",
    "left_out",
    "load",
    "load_plugins",
    "register",
    "register_for",
    "without_hydra",
]

_COMPOSING = {
    **dict.fromkeys(("left_out", "load_plugins", "register_for"), "experiment_files"),
    **dict.fromkeys(("conf_dir", "defaults", "register"), "schemas"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import at first use what composes configurations.

        Hydra takes a fifth of a second to import; workers and deployed clients never compose.
        """
        if name not in _COMPOSING:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_COMPOSING[name]}"), name)
