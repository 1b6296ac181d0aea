"""The protection that a configuration names."""

from __future__ import annotations

from heliotrope import registry
from heliotrope.config import DistributedConfig

from .dpsgd import DpSgd

__all__ = ["privacy_of"]


def privacy_of(cfg: DistributedConfig) -> DpSgd | None:
    """Return the protection of a run's records; `ConfigError` if its keys are wrong."""
    found: DpSgd | None = registry.entry("record_privacy", cfg.privacy.name).build(
        vars(cfg.privacy)
    )
    return found
