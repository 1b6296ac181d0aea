"""Workers that die, checkpoints that are damaged, runs that diverge or are stopped."""

from __future__ import annotations

import itertools
import os
import random
import resource
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from heliotrope.errors import (
    CheckpointError,
    ConfigError,
    ResourceError,
    RunDirectoryError,
    RunFailedError,
    WorkerError,
)
from heliotrope.tasks import Classification
from tests.distributed_runs import (
    INLINE,
    RAY,
    TORCHRUN,
    alive,
    checkpoints,
    cut,
    process,
    process_of_rank,
    seconds_of,
    train,
    wait_until,
)
from tests.support import assert_same_tensors, events_of, fresh_seed, saved_by, weights_of

pytestmark = pytest.mark.usefixtures("no_report")

_EPOCHS = 12


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "whole", *TORCHRUN, epochs=_EPOCHS)


def _signal_in_time(
    directory: Path, rank: int, epoch: int, sent: signal.Signals = signal.SIGKILL
) -> threading.Thread:
    """Send a rank a signal as soon as the run has that many epochs in metrics.jsonl."""

    def kill() -> None:
        pid = wait_until(lambda: process_of_rank(directory, rank))
        wait_until(lambda: '"train"' in _tail(directory, epoch))
        os.kill(pid, sent)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def _tail(directory: Path, epoch: int) -> str:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return "".join(line for line in lines if f'"epoch": {epoch}' in line)


@pytest.mark.parametrize(
    "launcher",
    [pytest.param(RAY, id="ray", marks=pytest.mark.slow), pytest.param(TORCHRUN, id="torchrun")],
)
def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    launcher: tuple[str, ...],
    undisturbed: Path,
    tmp_path: Path,
    ray_session: object,
) -> None:
    draw = random.Random(fresh_seed())
    rank = draw.randint(0, 1)
    killer = _signal_in_time(tmp_path, rank, draw.randint(1, _EPOCHS // 2))
    train(tmp_path, *launcher, "distributed.max_failures=1", epochs=_EPOCHS)
    killer.join()

    assert_same_tensors(weights_of(undisturbed), weights_of(tmp_path))
    [failure] = events_of(tmp_path, "failure")
    assert failure["rank"] == rank
    mine = [event for event in events_of(tmp_path) if event["event"] != "failure"]
    assert mine == events_of(undisturbed)
    assert seconds_of(tmp_path) == sorted(seconds_of(tmp_path))


def test_a_killed_worker_without_a_second_attempt_fails_the_run(
    tmp_path: Path,
    ray_session: object,
) -> None:
    killer = _signal_in_time(tmp_path, 1, 1)
    with pytest.raises(
        WorkerError, match=r"rank 1 failed: its process died.*resume=true"
    ) as raised:
        train(tmp_path, *RAY, epochs=_EPOCHS)
    killer.join()
    assert raised.value.exit_code == 1
    assert not (tmp_path / "result.json").exists()
    for rank in (0, 1):
        pid = process_of_rank(tmp_path, rank)
        assert pid is not None
        wait_until(lambda pid=pid: not alive(pid), seconds=10)


@pytest.mark.parametrize("launcher", [INLINE, TORCHRUN], ids=["inline", "torchrun"])
def test_a_diverged_run_names_the_epoch_and_the_remedy(
    launcher: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(RunFailedError, match=r"epoch \d+: .*optimizer\.lr=1e\+20") as raised:
        train(tmp_path, *launcher, "optimizer.lr=1e20", "distributed.max_failures=3")
    assert raised.value.exit_code == 1
    [failure] = events_of(tmp_path, "failure")  # tried once: it would diverge again
    assert "diverged" in failure["reason"]


def test_noise_is_named_where_private_training_diverged(tmp_path: Path) -> None:
    private = ("distributed/privacy=dpsgd", "distributed.privacy.noise_multiplier=1")
    with pytest.raises(RunFailedError, match=r"or distributed\.privacy\.clip=1e\+30, which"):
        train(tmp_path, *INLINE, "data.fit=none", *private, "distributed.privacy.clip=1e30")


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        train(tmp_path, *INLINE)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 17179869184 bytes."
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_worker_without_memory_is_named_and_tried_again(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = "distributed.checkpoint_every_steps=5"
    whole = train(tmp_path / "whole", *INLINE, steps, epochs=2)
    full = [error]
    losses = Classification.losses

    def losses_once_too_much(self: Classification, *given: object) -> torch.Tensor:
        full_at_step_17 = next(count) == 17 and full
        if full_at_step_17:
            raise full.pop()
        return losses(self, *given)

    count = itertools.count(1)
    monkeypatch.setattr(Classification, "losses", losses_once_too_much)
    train(tmp_path / "run", *INLINE, steps, "distributed.max_failures=1", epochs=2)
    assert not full
    [failure] = events_of(tmp_path / "run", "failure")
    assert failure["reason"].startswith("ran out of memory: ")
    assert_same_tensors(weights_of(whole), weights_of(tmp_path / "run"))


def test_a_worker_that_ray_ended_for_its_memory_is_named() -> None:
    from ray.exceptions import OutOfMemoryError

    from distributed.launch.ray_launcher import _failure

    assert "ran out of memory" in _failure(1, OutOfMemoryError("killed")).reason


@pytest.mark.slow
def test_a_disk_that_fills_ends_the_run_and_leaves_what_was_whole(tmp_path: Path) -> None:
    large = (*INLINE, "model.hidden=[300,300]", "distributed.epochs=300")
    with process(tmp_path, *large) as job:
        wait_until(lambda: checkpoints(tmp_path) > 1)
        resource.prlimit(job.pid, resource.RLIMIT_FSIZE, (2**18, 2**18))  # bytes a file
        output = job.ended()
    assert job.returncode == 1, output
    assert "could not be written" in output
    assert "File too large" in output
    assert "Traceback" not in output
    assert all(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())
    saved = saved_by(tmp_path)

    epochs = saved.state["epoch"] + 2
    train(tmp_path, *large, "resume=true", epochs=epochs)
    whole = train(tmp_path / "whole", *large, epochs=epochs)
    assert_same_tensors(weights_of(whole), weights_of(tmp_path))


@pytest.mark.parametrize("launcher", [INLINE, TORCHRUN], ids=["inline", "torchrun"])
def test_a_disk_without_room_for_an_event_ends_the_run_with_the_cause(
    launcher: tuple[str, ...], tmp_path: Path
) -> None:
    small = (*launcher, "model.hidden=[2]", "distributed.max_failures=2")
    with process(tmp_path, *small, "distributed.epochs=20000") as job:
        # Larger than any file but those to which lines are added.
        metrics = tmp_path / "metrics.jsonl"
        wait_until(lambda: metrics.exists() and metrics.stat().st_size > 2**16)
        for pid in (job.pid, *_children(job.pid)):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (2**16, 2**16))  # bytes a file
        output = job.ended()
    assert job.returncode == 1, output
    assert "metrics.jsonl could not be written" in output
    assert "File too large" in output
    assert f"resume=true hydra.run.dir={tmp_path}" in output
    assert "Traceback" not in output
    assert saved_by(tmp_path)


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole", *INLINE, epochs=4)
    parts = cut(whole, tmp_path / "parts", after=3)
    newest = max((parts / "checkpoints").iterdir()) / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)

    train(parts, *INLINE, "resume=true", epochs=4)
    assert_same_tensors(weights_of(whole), weights_of(parts))
    assert f"Checkpoint refused: {newest}" in capsys.readouterr().out.replace("\n", " ")
    assert f"Checkpoint refused: {newest}" in (parts / "run.log").read_text()


def test_damage_everywhere_is_an_error(tmp_path: Path) -> None:
    train(tmp_path, *INLINE, epochs=2)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="All 2 checkpoints"):
        train(tmp_path, *INLINE, "resume=true", epochs=3)


def test_more_workers_than_the_cluster_has_is_said_at_once(
    tmp_path: Path,
    ray_session: object,
) -> None:
    with pytest.raises(ResourceError, match=r"distributed.workers=3.*Of its 2 CPU"):
        train(tmp_path, *RAY, "distributed.workers=3", "cluster.wait_seconds=0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("data=mnist", "data.dir=/nowhere"), "data.dir=/nowhere"),
        (("model=cnn", "model.channels=[4,4,4,4]"), r"model\.channels"),
        (("device=cuda",), "device=cuda"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    overrides: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, *INLINE, *overrides)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    train(tmp_path, *INLINE, epochs=1)
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(RunDirectoryError, match="resume=true"):
        train(tmp_path, *INLINE, epochs=1)
    assert (tmp_path / "result.json").read_bytes() == before


def _children(pid: int) -> list[int]:
    """The processes of a session, Ray's own and the workers among them."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = status.read_text().rpartition(")")[2].split()  # after its name: state, parent
            parents[int(status.parent.name)] = int(fields[1])
    found, new = [pid], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found[1:]


def _has_stepped(directory: Path) -> bool:
    """Return whether a run that logs each step has done one."""
    events = directory / "metrics.jsonl"
    return events.exists() and '"event": "step"' in events.read_text()


@pytest.mark.parametrize(
    ("launcher", "sent"),
    [
        (INLINE, signal.SIGINT),
        (INLINE, signal.SIGTERM),
        (TORCHRUN, signal.SIGINT),
        pytest.param(TORCHRUN, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(RAY, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(RAY, signal.SIGTERM, marks=pytest.mark.slow),
    ],
    ids=lambda value: value[0].rpartition("=")[2] if isinstance(value, tuple) else value.name,
)
def test_a_stopped_run_saves_the_step_it_is_at_and_continues_bit_for_bit(
    launcher: tuple[str, ...], sent: signal.Signals, tmp_path: Path
) -> None:
    # One long epoch, so that nothing is saved but by the signal.
    size = ("distributed.batch_size=2", "model.hidden=[1024,1024]", "optimizer.lr=0.001")
    long, parts = (*launcher, "distributed.epochs=1", *size), tmp_path / "parts"
    long = (*long, "distributed.log_every_steps=1")
    with process(parts, *long) as job:
        wait_until(lambda: _has_stepped(parts))  # before its first step a run has nothing to save
        time.sleep(random.Random(fresh_seed()).random() / 3)
        below = _children(job.pid)
        if launcher is RAY and sent == signal.SIGTERM:
            job.send_signal(sent)  # its own processes would end as well, and the workers with them
        else:
            os.killpg(job.pid, sent)  # as Ctrl-C does: to the whole foreground group
        output = job.ended()
    assert job.returncode == 128 + sent, output
    assert f"resume=true hydra.run.dir={parts}" in output
    assert "Traceback" not in output
    wait_until(lambda: not any(map(alive, below)), seconds=10)

    saved = saved_by(parts)
    assert f"stopped after step {saved.progress}" in output
    assert 0 < saved.state["step"] < 647
    local = INLINE if launcher is INLINE else TORCHRUN
    train(parts, *long, *local, "resume=true", epochs=1)
    whole = train(tmp_path / "whole", *long, *local, epochs=1)
    assert_same_tensors(weights_of(whole), weights_of(parts))
    assert events_of(whole) == events_of(parts)


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path: Path) -> None:
    with process(tmp_path, *TORCHRUN, "distributed.epochs=2000") as job:
        pids = [wait_until(lambda rank=rank: process_of_rank(tmp_path, rank)) for rank in (0, 1)]
        wait_until(lambda: events_of(tmp_path, "train"))  # before the first step, nothing waits
        os.kill(pids[1], signal.SIGSTOP)  # no step will end any more
        job.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(timeout=2)
        job.send_signal(signal.SIGINT)
        os.kill(pids[1], signal.SIGCONT)
        assert job.wait(timeout=20) == 130
        wait_until(lambda: not any(map(alive, pids)), seconds=10)


def test_workers_do_not_outlive_a_driver_that_was_killed(tmp_path: Path) -> None:
    with process(tmp_path, *TORCHRUN, "distributed.epochs=2000") as job:
        pids = [wait_until(lambda rank=rank: process_of_rank(tmp_path, rank)) for rank in (0, 1)]
        job.kill()
        job.wait()
        wait_until(lambda: not any(map(alive, pids)), seconds=10)


@pytest.mark.slow  # torchrun's agent waits 30 s for a process that does not end
@pytest.mark.parametrize("launcher", [RAY, TORCHRUN], ids=["ray", "torchrun"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_named_and_replaced(
    rank: int,
    launcher: tuple[str, ...],
    undisturbed: Path,
    tmp_path: Path,
    ray_session: object,
) -> None:
    hang = _signal_in_time(tmp_path, rank, epoch=2, sent=signal.SIGSTOP)
    choice = ("distributed.collective_timeout=2", "distributed.max_failures=1")
    train(tmp_path, *launcher, *choice, epochs=_EPOCHS)
    hang.join()
    [failure] = events_of(tmp_path, "failure")
    assert f"missing: rank {rank}" in failure["reason"]
    assert_same_tensors(weights_of(undisturbed), weights_of(tmp_path))
