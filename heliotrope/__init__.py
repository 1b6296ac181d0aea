"""Heliotrope: one experiment, trained where the compute is and where the data is."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """Import `heliotrope.plugin` when it is first used: `@heliotrope.plugin.model`."""
    if name == "plugin":
        return import_module("heliotrope.plugin")
    raise AttributeError(f"module 'heliotrope' has no attribute {name!r}")
