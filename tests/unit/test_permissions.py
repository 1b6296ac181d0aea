"""Who may read and write what a run leaves: as the umask says, and never more."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from federated.job import run_job
from tests.federated_runs import SMALL
from tests.support import compose


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("no_report")
def test_all_of_a_run_has_the_permissions_that_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    directory = tmp_path / "mine"
    private = (
        "data.fit=none",
        "federated/privacy=central",
        "federated.privacy.noise_multiplier=1",
        "federated.privacy.delta=1e-3",
    )
    run_job(compose("federated", *SMALL, "federated.rounds=1", *private), directory)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*")}
    assert {"config.yaml", "privacy.jsonl", "result.json", "checkpoints"} <= {
        path.name for path in found
    }
    for path, mode in found.items():
        assert not mode & umask, f"{path.name} has {mode:o} under a umask of {umask:o}"
        assert path.is_dir() or not mode & 0o111, f"{path.name} can be executed"
