"""The attack that a configuration names."""

from __future__ import annotations

from heliotrope import registry
from heliotrope.config import FederatedConfig

from .kinds import Attack

__all__ = ["attack_of"]


def attack_of(cfg: FederatedConfig) -> Attack | None:
    """Return the simulated attack of a run; `ConfigError` if its keys are wrong."""
    found: Attack | None = registry.entry("attack", cfg.attack.name).build(vars(cfg.attack))
    return found
