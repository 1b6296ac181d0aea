"""The secure aggregation that a configuration names."""

from __future__ import annotations

from heliotrope import registry
from heliotrope.config import FederatedConfig

from .settings import SecAgg

__all__ = ["secure_aggregation_of"]


def secure_aggregation_of(cfg: FederatedConfig) -> SecAgg | None:
    """Return what a run asks for; `ConfigError` if its keys are wrong."""
    chosen = cfg.secure_aggregation
    found: SecAgg | None = registry.entry("secure_aggregation", chosen.name).build(vars(chosen))
    return found
