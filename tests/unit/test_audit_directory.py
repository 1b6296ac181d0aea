"""Where an audit cannot leave its files, it says so, if possible before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from federated.job import run_job
from heliotrope.commands import audit
from heliotrope.errors import RunDirectoryError, RunFailedError
from tests.support import compose


def test_an_audit_needs_a_directory_that_takes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("federated.partition.clients=4", "federated.clients_per_round=4", "federated.rounds=1")
    run_job(compose("federated", "data=digits", *few), tmp_path)
    (tmp_path / "audit.json").mkdir()
    with pytest.raises(RunFailedError, match=r"audit\.json could not be .*audit again\.$"):
        audit.audit_run(tmp_path, ["inversion"], Console(quiet=True))
    with monkeypatch.context() as patch:  # root may write where nobody else may
        patch.setattr(os, "access", lambda *_: False)
        patch.setattr(audit._Subject, "inversions", lambda _: pytest.fail("work was done"))
        with pytest.raises(RunDirectoryError, match=r"cannot be written.* Name a copy"):
            audit.audit_run(tmp_path, ["inversion"], Console(quiet=True))
