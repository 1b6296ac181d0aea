"""Fixtures that tests of both modes share."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[ModuleType]:
    """Ray on this machine with two CPUs, started once; runs inside find it and leave it on."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out report.html, which takes longer to draw than a small run takes to train."""

    def nothing(*_arguments: object) -> None: ...

    monkeypatch.setattr("heliotrope.report.write_report", nothing)
