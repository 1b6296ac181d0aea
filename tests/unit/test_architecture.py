"""Which module may import which: `distributed -> heliotrope <- federated`, layer by layer.

No circle; and conf/ is values.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
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

# The layers, the lowest first: a module imports from its own layer and from those before it. The
# longest name that a module's begins with is its layer.
LAYERS = {
    "heliotrope": (
        "heliotrope",  # the version
        "heliotrope.shell",
        "heliotrope.modes",
        "heliotrope.errors",
        "heliotrope.seeding",
        "heliotrope.system",
        "heliotrope.privacy",
        "heliotrope.signatures",
        "heliotrope.builtin",
        "heliotrope.registry",
        "heliotrope.plugin_loading",
        "heliotrope.plugin",
        "heliotrope.config",
        "heliotrope.cluster",
        "heliotrope.data",
        "heliotrope.panels",
        "heliotrope.metrics",
        "heliotrope.tasks",
        "heliotrope.models",
        "heliotrope.training",
        "heliotrope.evaluation",
        "heliotrope.report",
        "heliotrope.runs",
        "heliotrope.search",
        "heliotrope.audit",
        "heliotrope.planning",
        "heliotrope.watch",
        "heliotrope.commands",
        "heliotrope.cli",
        "heliotrope.__main__",
    ),
    "distributed": (
        "distributed",
        "distributed.topology",
        "distributed.attempt",
        "distributed.communication",
        "distributed.privacy",
        "distributed.strategies",
        "distributed.loop",
        "distributed.launch",
        "distributed.driver",
        "distributed.planning",
        "distributed.torchrun_ranks",
        "distributed.audit",
        "distributed.submit",
        "distributed.job",
        "distributed.__main__",
    ),
    "federated": (
        "federated",
        "federated.fractions",
        "federated.client_state",
        "federated.population",
        "federated.algorithms",
        "federated.secure_aggregation",
        "federated.updates",
        "federated.aggregation",
        "federated.privacy",
        "federated.attacks",
        "federated.engine",
        "federated.secure_rounds",
        "federated.pools",
        "federated.flower",
        "federated.strategies",
        "federated.protection",
        "federated.attack_setting",
        "federated.secure_setting",
        "federated.remedies",
        "federated.round_checks",
        "federated.components",
        "federated.server_state",
        "federated.server",
        "federated.simulation",
        "federated.tune",
        "federated.planning",
        "federated.audit",
        "federated.job",
        "federated.deploy",
        "federated.__main__",
    ),
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for top in LAYERS for path in sorted((ROOT / top).rglob("*.py"))}


def run_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that are executed, in functions too: not those for type checkers."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.orelse:
            yield from run_imports(child)
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from run_imports(child)


@cache
def imported_modules(module: str) -> frozenset[str]:
    """Return the modules of ours that `module` imports, with the packages that it enters so."""
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in run_imports(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            found.add(inner if inner in FILES else base)
    entered = {parent for name in found for parent in parents_of(name)} - set(parents_of(module))
    return frozenset(name for name in found | entered if name in FILES and name != module)


def parents_of(module: str) -> list[str]:
    """Return the packages that `module` lies in."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def layer_of(module: str) -> tuple[str, int]:
    """Return the top-level package and the number of the layer of `module`."""
    top = module.partition(".")[0]
    fitting = [name for name in LAYERS[top] if f"{module}.".startswith(f"{name}.")]
    return top, LAYERS[top].index(max(fitting, key=len))


@pytest.mark.parametrize("top", LAYERS)
def test_every_module_has_its_layer(top: str) -> None:
    tops = [m for m in FILES if m.startswith(f"{top}.")]
    # A new folder or file directly below a package is to be put in its place in LAYERS.
    assert [module for module in tops if layer_of(module)[1] == 0] == []


def test_imports_go_down_the_layers() -> None:
    wrong = []
    for module in FILES:
        top, layer = layer_of(module)
        for name in sorted(imported_modules(module)):
            other_top, other = layer_of(name)
            if other_top == top and other > layer:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_no_import_circle() -> None:
    # Imports inside of functions count: they hide a circle, but do not break it.
    try:
        TopologicalSorter({module: imported_modules(module) for module in FILES}).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(reversed(error.args[1]))}")


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
