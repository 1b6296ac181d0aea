"""The protection that a configuration names."""

from __future__ import annotations

from heliotrope import registry
from heliotrope.config import FederatedConfig

from .base import ClientPrivacy

__all__ = ["privacy_of"]


def privacy_of(cfg: FederatedConfig) -> ClientPrivacy | None:
    """Return the protection of a run's clients; `ConfigError` if its keys are wrong."""
    found: ClientPrivacy | None = registry.entry("privacy", cfg.privacy.name).build(
        vars(cfg.privacy)
    )
    return found
