"""What importing the shared package brings into a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

IMPORT_ALL = """
import importlib, pkgutil, sys
import heliotrope

modules = [module.name for module in pkgutil.walk_packages(heliotrope.__path__, "heliotrope.")]
for name in modules:
    importlib.import_module(name)
print(len(modules), *sorted({"ray", "flwr"} & set(sys.modules)))
"""


def test_heliotrope_brings_in_neither_ray_nor_flower() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    count, *frameworks = done.stdout.split()
    assert int(count) > 10
    assert frameworks == []
