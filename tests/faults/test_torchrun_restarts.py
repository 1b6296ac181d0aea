"""Ranks that are killed under `torchrun --max-restarts`: the run goes on, in its directory."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.distributed_runs import (
    MOMENTUM,
    SMALL,
    TORCHRUN,
    Job,
    alive,
    checkpoints,
    process_of_rank,
    result_of,
    seconds_of,
    train,
    wait_until,
)
from tests.support import assert_same_tensors, events_of, fresh_seed, weights_of

_EPOCHS = 40


@contextmanager
def _torchrun(folder: Path, *arguments: str) -> Iterator[Job]:
    """Start `SMALL` under torchrun with two ranks, in `folder`."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    options = [argument for argument in arguments if argument.startswith("--")]
    overrides = [argument for argument in arguments if not argument.startswith("--")]
    command = [*start, *options, "-m", "distributed", *SMALL, MOMENTUM, *TORCHRUN, *overrides]
    job = Job(command, folder.with_name(f"{folder.name}.output"), cwd=folder)
    try:
        yield job
    finally:
        job.kill()
        job.wait()


def _directory(folder: Path) -> Path | None:
    return next(folder.glob("runs/custom/distributed/*"), None)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="static", marks=pytest.mark.slow),
        pytest.param(("--standalone",), id="c10d", marks=pytest.mark.slow),
    ],
)
def test_a_killed_rank_is_started_again_and_goes_on_in_its_directory(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    draw = random.Random(fresh_seed())
    folder = tmp_path / "folder"
    folder.mkdir()
    port = () if options else (f"--master-port={draw.randint(20000, 30000)}",)
    with _torchrun(
        folder, "--max-restarts=2", *options, *port, f"distributed.epochs={_EPOCHS}"
    ) as job:
        directory = wait_until(lambda: _directory(folder))
        for attempt in (1, 2):
            before = checkpoints(directory) if attempt > 1 else 0
            wait_until(lambda before=before: checkpoints(directory) > before)
            rank, known = draw.randint(0, 1), seconds_of(directory)[-1]
            pid = wait_until(
                lambda rank=rank, attempt=attempt: process_of_rank(directory, rank, attempt)
            )
            os.kill(pid, signal.SIGKILL)
        output = job.ended(100)
    assert job.returncode == 0, output
    assert list(directory.parent.iterdir()) == [directory]
    assert result_of(directory)["epochs"] == _EPOCHS
    assert [e["epoch"] for e in events_of(directory, "train")] == [*range(1, _EPOCHS + 1)]
    assert seconds_of(directory) == sorted(seconds_of(directory))
    assert result_of(directory)["wall_seconds"] > known
    whole = train(tmp_path / "whole", *TORCHRUN, epochs=_EPOCHS)
    assert_same_tensors(weights_of(whole), weights_of(directory))


@pytest.mark.slow
def test_a_restart_does_not_resume_what_nobody_asked_to_resume(tmp_path: Path) -> None:
    train(tmp_path, *TORCHRUN, epochs=1)
    before = (tmp_path / "result.json").read_bytes()
    given = ("distributed.epochs=2", f"hydra.run.dir={tmp_path}")
    with _torchrun(tmp_path, "--max-restarts=1", "--standalone", *given) as job:
        output = job.ended(60)
    assert job.returncode == 1
    assert output.count("is already in use: it holds a run") == 2
    assert (tmp_path / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    "sent",
    [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM],
    ids=lambda sent: sent.name,
)
def test_a_signal_to_the_whole_group_stops_in_order(sent: signal.Signals, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    given = ("distributed.epochs=2000", "distributed.checkpoint_every=2000")
    with _torchrun(tmp_path, "--standalone", *given, f"hydra.run.dir={directory}") as job:
        ranks = [wait_until(lambda rank=rank: process_of_rank(directory, rank)) for rank in (0, 1)]
        wait_until(lambda: events_of(directory, "train"))
        os.killpg(job.pid, sent)  # torchrun passes on what its ranks have had already
        output = job.ended()
    assert f"resume=true hydra.run.dir={directory}" in output
    assert checkpoints(directory) == 1
    assert not any(map(alive, ranks))
