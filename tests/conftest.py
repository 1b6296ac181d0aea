"""Fixtures that tests of both modes share."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import distributed  # noqa: F401 - before `heliotrope.distributed`, whose second copy it would be
import federated  # noqa: F401
from heliotrope import cli, registry
from heliotrope.cluster.own_ray import LOOPBACK, keep_token_private, listening_here_only
from heliotrope.config import Mode
from heliotrope.plugin_loading import execution, importing
from tests.support import Command, Started, Type, type_command


def pytest_configure(config: pytest.Config) -> None:
    """Let what tests start hear SIGINT, and keep what two processes of tests start on Ray apart."""
    # Tests in the background ignore it, and what they start would.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):  # one of two: runs look for a cluster to join
        folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["RAY_TMPDIR"] = folder.name


@pytest.fixture(scope="session")
def ray_session() -> Iterator[ModuleType]:
    """Ray on this machine with two CPUs, started once; runs inside find it and leave it on."""
    import ray

    keep_token_private()
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    with listening_here_only(ray):
        ray.init(num_cpus=2, _node_ip_address=LOOPBACK, **quiet)
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def _plugins_end_with_their_test() -> Iterator[None]:
    """Take out what a test's plug-ins registered in this process."""
    kept = (execution._SOURCES, importing.FINDER.sources)
    registered, before = registry.snapshot(), [dict(sources) for sources in kept]
    yield
    registry.restore(registered)
    for top in importing.FINDER.sources.keys() - before[1].keys():
        for name in [name for name in sys.modules if name.partition(".")[0] == top]:
            del sys.modules[name]
    for sources, earlier in zip(kept, before, strict=True):
        sources.clear()
        sources.update(earlier)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out report.html, which takes longer to draw than a small run takes to train."""

    def nothing(*_arguments: object) -> None: ...

    monkeypatch.setattr("heliotrope.report.write_report", nothing)


@pytest.fixture
def type_(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Type:
    """Type a command in an empty folder: `type_(mode, *arguments, job=job) -> exit code`."""
    monkeypatch.chdir(tmp_path)

    def typed(mode: Mode, *arguments: str, job: Started) -> int:
        return type_command(monkeypatch, mode, *arguments, job=job)

    return typed


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the files and folders that were made durable from now on, in order."""
    found: list[Path] = []

    def noting(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            found.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            real(descriptor)

        return sync

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    return found


@pytest.fixture
def rng() -> np.random.Generator:
    """Draw other random inputs in each run of a test."""
    seed = secrets.randbits(32)
    print(f"rng seed: {seed}")  # shown by pytest on failure
    return np.random.default_rng(seed)


@pytest.fixture
def heliotrope(capsys: pytest.CaptureFixture[str]) -> Command:
    """Type a command: `heliotrope(*arguments) -> (exit code, output, errors)`."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(arguments))
        return code, *capsys.readouterr()

    return call
