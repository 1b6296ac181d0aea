"""The protection that a configuration names."""

from __future__ import annotations

from heliotrope import registry
from heliotrope.config import FederatedConfig

from .base import ClientPrivacy
from .record import Record

__all__ = ["privacy_of", "record_of"]


def privacy_of(cfg: FederatedConfig) -> ClientPrivacy | None:
    """Return the protection of a run's clients; `ConfigError` if its keys are wrong."""
    found: ClientPrivacy | None = registry.entry("privacy", cfg.privacy.name).build(
        vars(cfg.privacy)
    )
    return found


def record_of(cfg: FederatedConfig) -> Record | None:
    """Return how each example of a client is protected; None if it is not."""
    found = registry.entry("privacy", cfg.privacy.name).build(vars(cfg.privacy))
    return found if isinstance(found, Record) else None
