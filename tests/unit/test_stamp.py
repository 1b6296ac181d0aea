"""Generated directories of commands that start in the same second."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import Started, type_command


def test_commands_of_the_same_second_have_directories_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Started()
    for _ in range(3):
        assert type_command(monkeypatch, "distributed", "experiment=quickstart", job=job) == 0
    assert len(set(job.directories)) == 3
