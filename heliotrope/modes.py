"""A mode's modules by name: inside the package in a wheel, beside it in a checkout.

An installed checkout has both names for the same files. A process keeps to the one that came
first: a second copy would have classes and registries of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["mode_module"]

_ABOVE = Path(__file__).resolve().parents[1]  # the folder of a checkout, or of installed packages


def mode_module(mode: str, name: str) -> ModuleType:
    """Import `name` of a mode, such as `__main__`."""
    package = f"heliotrope.{mode}"
    inside, beside = importlib.util.find_spec(package), sys.modules.get(mode)
    if inside is not None and not Path(str(inside.origin)).is_relative_to(_ABOVE):
        inside = None  # that of another checkout, which is installed
    of_checkout = inside is not None and getattr(beside, "__file__", None) == inside.origin
    if inside is None or (of_checkout and package not in sys.modules):
        package = mode
    return importlib.import_module(f"{package}.{name}")
