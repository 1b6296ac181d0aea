"""What sharded workers are started with, so that new blocks of memory cost little."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distributed.attempt import AttemptStart, RunAttempt, WorkerResources
from distributed.launch import torchrun
from heliotrope.runs.clock import Clock
from heliotrope.system.allocator import huge_pages
from tests.support import compose


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
        ({"GLIBC_TUNABLES": ""}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
        (
            {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"},
            {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"},
        ),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, {}),
    ],
)
def test_a_setting_of_the_user_stays(given: dict[str, str], added: dict[str, str]) -> None:
    assert huge_pages(given) == added


@pytest.mark.parametrize(("strategy", "huge"), [("fsdp", True), ("ddp", False)])
def test_sharded_workers_have_blocks_in_huge_pages(
    strategy: str, huge: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    run = compose("distributed", "experiment=quickstart", f"distributed.strategy={strategy}")
    start = AttemptStart(Clock().read(), 0.0, strategy)
    attempt = RunAttempt(run, tmp_path, None, start, WorkerResources(1, "cpu"))
    with torchrun._environment(attempt):
        assert ("GLIBC_TUNABLES" in os.environ) is huge
    assert "GLIBC_TUNABLES" not in os.environ
