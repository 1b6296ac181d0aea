"""A mode's modules by name: inside the package in a wheel, beside it in a checkout."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

__all__ = ["mode_module"]


def mode_module(mode: str, name: str) -> ModuleType:
    """Import `name` of a mode, such as `__main__`."""
    package = f"heliotrope.{mode}"
    if importlib.util.find_spec(package) is None:
        package = mode
    return importlib.import_module(f"{package}.{name}")
