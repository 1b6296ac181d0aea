"""The wheel: only `heliotrope` inside, and at peace with Dask, whose package is `distributed`."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Folders of the checkout, and where they are in the wheel.
PLACES = {
    "heliotrope": "heliotrope",
    "distributed": "heliotrope/distributed",
    "federated": "heliotrope/federated",
    "conf": "heliotrope/conf",
}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command, show everything it said if it fails, and return its standard output."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that neither stale nor new build folders play a part."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PLACES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist")
    run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=source)
    (built,) = (source / "dist").iterdir()
    return built


def test_wheel_holds_the_whole_tree_under_one_name(wheel: Path) -> None:
    expected = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in PLACES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - info == expected


def test_wheel_has_one_command(wheel: Path) -> None:
    (info,) = importlib.metadata.distributions(path=[str(wheel)])
    assert [(point.name, point.value) for point in info.entry_points] == [
        ("heliotrope", "heliotrope.__main__:command")
    ]


def test_editable_install_offers_the_modes_only_inside_heliotrope(tmp_path: Path) -> None:
    # The environment of the tests is the editable one (scripts/test).
    probe = """
import importlib.util as util
for name in ("heliotrope.distributed", "heliotrope.federated", "distributed", "federated", "conf"):
    spec = util.find_spec(name)
    print(name, spec.origin if spec else None)
"""
    lines = run(sys.executable, "-c", probe, cwd=tmp_path).splitlines()
    found = dict(line.split(maxsplit=1) for line in lines)
    assert found["heliotrope.distributed"] == str(ROOT / "distributed" / "__init__.py")
    assert found["heliotrope.federated"] == str(ROOT / "federated" / "__init__.py")
    assert not [name for name in ("distributed", "federated", "conf") if str(ROOT) in found[name]]
    run(Path(sys.executable).with_name("heliotrope"), "--help", cwd=tmp_path)


@pytest.fixture(scope="module")
def clean_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of an environment with the wheel and Dask, and no checkout."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", ".", cwd=home)
    python = home / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    run(*pip, "--no-deps", wheel, cwd=home)
    run(*pip, "--constraint", ROOT / "constraints.txt", "distributed", cwd=home)
    # The third-party packages of this environment, to spare their installation. A plain path
    # in a .pth file is searched last, and .pth files inside it, such as the one that makes the
    # checkout's editable install work, are not read.
    site_packages = home / Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home
        ).strip()
    )
    (site_packages / "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_installed_beside_dask(clean_environment: Path, tmp_path: Path) -> None:
    probe = """
import dask.distributed, distributed, heliotrope, heliotrope.distributed, heliotrope.federated
print(distributed.Client.__module__)
print(heliotrope.__file__, heliotrope.distributed.__file__, heliotrope.federated.__file__)
"""
    client, files = run(clean_environment / "python", "-c", probe, cwd=tmp_path).splitlines()
    assert client == "distributed.client"
    assert all(str(clean_environment.parent) in file for file in files.split())
    run(
        clean_environment / "heliotrope",
        "federated",
        "experiment=quickstart",
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"
