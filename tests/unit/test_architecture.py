"""Which package may import which: `distributed -> heliotrope <- federated`, and conf/ is values."""

from __future__ import annotations

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A mode that named itself absolutely would import Dask's `distributed`, or nothing, in a wheel.
FORBIDDEN = {
    "heliotrope": {"ray", "flwr", "distributed", "federated"},
    "distributed": {"flwr", "federated", "heliotrope.federated", "distributed"},
    "federated": {"distributed", "heliotrope.distributed", "federated"},
}


def imported_names(path: Path, package: str) -> set[str]:
    """Return the absolute dotted names that a file of `package` imports, and relative ones' own.

    Relative imports are returned only where they leave the top-level folder.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom(level=0):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            case ast.ImportFrom():
                resolve_name("." * node.level, package)  # ImportError: beyond the top level
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                names.add(name)
    return names


@pytest.mark.parametrize("top", FORBIDDEN)
def test_imports_go_one_way(top: str) -> None:
    wrong = []
    for path in sorted((ROOT / top).rglob("*.py")):
        package = ".".join(path.relative_to(ROOT).parts[:-1])
        for name in imported_names(path, package):
            wrong += [
                f"{path.relative_to(ROOT)} imports {name}"
                for forbidden in FORBIDDEN[top]
                if f"{name}.".startswith(f"{forbidden}.")
            ]
    assert wrong == []


def test_conf_holds_only_values() -> None:
    files = [path for path in (ROOT / "conf").rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix != ".yaml"] == []
    # A `_target_` would name a class by a path that differs in a wheel, and let a config run code.
    assert [path for path in files if "_target_" in path.read_text()] == []
