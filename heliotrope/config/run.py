"""The schema of an experiment: everything that both modes need, in one `Run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from heliotrope import plugin_loading
from heliotrope.config.audit import AuditConfig
from heliotrope.config.cluster import ClusterConfig
from heliotrope.config.data import DataConfig
from heliotrope.config.distributed import DistributedConfig
from heliotrope.config.federated import FederatedConfig
from heliotrope.config.folds import Fold
from heliotrope.config.groups import ModelConfig, OptimizerConfig, TaskConfig
from heliotrope.config.project import ProjectConfig
from heliotrope.config.search import SearchConfig
from heliotrope.config.sweep import SweepConfig
from heliotrope.config.training import LossConfig, TargetConfig, TrackingConfig
from heliotrope.registry import Source

__all__ = ["Mode", "Run"]

Mode = Literal["distributed", "federated"]


@dataclass
class Run:
    """One experiment: everything both modes need, fully resolved.

    `task` is None for the one that the data poses, `metrics` are measured beside its own. With
    `folds`, the examples are divided as `folds_by` says, and `fold` is held out; None for each.
    `search` is None of a run that is no trial of one.
    `plugins` are files as a user names them, and once loaded their paths and SHA-256 sums.
    """

    name: str = "custom"
    seed: int = 0
    folds: int | None = None
    folds_by: str = "auto"
    fold: int | None = None
    resume: bool = False
    device: str = "auto"
    plugins: list[Any] = field(default_factory=list)
    plugins_changed: str = "refuse"
    evaluation_batch_size: int = 256
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    task: TaskConfig | None = None
    metrics: list[str] = field(default_factory=list)
    optimizer: OptimizerConfig = MISSING
    loss: LossConfig = field(default_factory=LossConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    distributed: DistributedConfig = MISSING
    federated: FederatedConfig = MISSING
    target: TargetConfig = field(default_factory=TargetConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    privacy: ProjectConfig = field(default_factory=ProjectConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    search: SearchConfig | None = None

    @property
    def task_name(self) -> str | None:
        """The task that was chosen; None for the one that the data poses."""
        return None if self.task is None else self.task.name

    @property
    def data_fold(self) -> Fold | None:
        """The fold that is held out for testing; None for the test split that the data have."""
        if self.folds is None or self.fold is None:
            return None
        return Fold(self.folds, self.fold, self.folds_by)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the plug-ins of this process: another one may need what they define."""
        return _unpickled, (tuple(plugin_loading.loaded()), vars(self))


def _unpickled(sources: tuple[Source, ...], values: dict[str, Any]) -> Run:
    for source in sources:
        plugin_loading.install(source)
    return Run(**values)
