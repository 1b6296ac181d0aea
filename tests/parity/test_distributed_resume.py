"""Parity 6, distributed: a run that was cut ends with the weights of one that was not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import distributed.launch.torchrun
from distributed.loop.worker import Worker
from heliotrope.errors import ConfigError, RunDirectoryError
from heliotrope.runs.clock import clock_from_now
from tests.distributed_runs import (
    INLINE,
    TORCHRUN,
    assert_close,
    checkpoints,
    cut,
    process,
    result_of,
    seconds_of,
    train,
    wait_until,
)
from tests.support import LaterClock, assert_same_tensors, events_of, fresh_seed, weights_of

pytestmark = pytest.mark.usefixtures("no_report")


def _same(one: Path, other: Path) -> None:
    assert_same_tensors(weights_of(one), weights_of(other))
    assert events_of(one) == events_of(other)
    assert (other / "result.json").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_run_continued_equals_a_run_in_one_go(optimizer: str, tmp_path: Path) -> None:
    choice = [*INLINE, f"optimizer={optimizer}"]
    whole = train(tmp_path / "whole", *choice)
    parts = train(tmp_path / "parts", *choice, epochs=1)
    train(parts, *choice, "resume=true", epochs=3)
    train(parts, *choice, "resume=true", epochs=4)
    _same(whole, parts)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "one_cycle"])
def test_a_scheduled_run_is_lengthened_only_with_a_horizon(schedule: str, tmp_path: Path) -> None:
    choice = [*INLINE, f"distributed.lr_schedule={schedule}"]
    parts = train(tmp_path / "parts", *choice, epochs=2)
    for epochs in (1, 3):
        with pytest.raises(ConfigError, match=r"Set distributed\.lr_horizon=2 to keep") as refused:
            train(parts, *choice, "resume=true", epochs=epochs)
        assert refused.value.exit_code == 2
        assert f"distributed.epochs={epochs} the learning rate would jump" in str(refused.value)
    horizon = "distributed.lr_horizon=2"
    train(parts, *choice, horizon, "resume=true", epochs=3)
    _same(train(tmp_path / "whole", *choice, horizon, epochs=3), parts)


def test_a_run_with_a_horizon_goes_on_as_if_in_one_go(tmp_path: Path) -> None:
    choice = [*INLINE, "distributed.lr_schedule=linear", "distributed.log_every_steps=1"]
    whole = train(tmp_path / "whole", *choice, epochs=3)
    parts = train(tmp_path / "parts", *choice, "distributed.lr_horizon=3", epochs=1)
    train(parts, *choice, "resume=true", epochs=3)
    _same(whole, parts)


def test_another_horizon_on_resume_is_said_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = [*INLINE, "distributed.lr_schedule=linear"]
    train(tmp_path, *choice, epochs=1)
    train(tmp_path, *choice, "distributed.lr_horizon=2", "resume=true", epochs=2)
    said = " ".join(capsys.readouterr().out.split())
    assert "schedule ends after 2 epochs, no longer after 1" in said


def test_early_stopping_does_not_count_the_end_of_a_run_that_goes_on(tmp_path: Path) -> None:
    # Evaluations 2 and 4 are regular; the one of epoch 3, at the end of a part, is not.
    choice = [
        *INLINE,
        "distributed.evaluate_every=2",
        "distributed.early_stopping.metric=test/accuracy",
        "distributed.early_stopping.min_delta=1",
        "distributed.early_stopping.patience=2",
    ]
    whole = train(tmp_path / "whole", *choice, epochs=5)
    parts = train(tmp_path / "parts", *choice, epochs=3)
    train(parts, *choice, "resume=true", epochs=5)
    assert_same_tensors(weights_of(whole), weights_of(parts))


@pytest.mark.slow
def test_three_ranks_add_in_the_same_order_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With two ranks any order of the sum is the same; with three it shows in the last bits.
    monkeypatch.setattr(distributed.launch.torchrun, "available_cpus", lambda: 3)
    choice = [*TORCHRUN, "distributed.workers=3", "model.hidden=[300,300]"]
    whole = train(tmp_path / "whole", *choice, epochs=2)
    parts = cut(whole, tmp_path / "parts", after=1)
    train(parts, *choice, "resume=true", epochs=2)
    _same(whole, parts)


def test_a_killed_run_continues_where_it_was(tmp_path: Path) -> None:
    epochs = 40
    draw = random.Random(fresh_seed())
    whole = train(tmp_path / "whole", *INLINE, epochs=epochs)
    parts = tmp_path / "parts"
    with process(parts, *INLINE, f"distributed.epochs={epochs}") as job:
        wait_until(lambda: checkpoints(parts) >= draw.randint(1, 3))
        job.kill()
    assert not (parts / "result.json").exists()
    train(parts, *INLINE, "resume=true", epochs=epochs)
    _same(whole, parts)


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *INLINE, epochs=2)
    parts = cut(whole, tmp_path / "parts", after=0)
    train(parts, *INLINE, "resume=true", epochs=2)
    _same(whole, parts)


_LOST = 1000.0  # seconds of an attempt after its last event


class _Cut:
    """Ends the training as `number` epochs are done, by `error`; knows the time that was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self._monkeypatch = monkeypatch
        self._directory = directory
        self._time = LaterClock()
        monkeypatch.setattr("heliotrope.runs.clock.time", self._time)
        self.known = 0.0

    def train(self, number: int, error: type[BaseException], *more: str) -> None:
        calls, function = 0, Worker._train_steps

        def steps(worker: Worker) -> bool:
            nonlocal calls
            calls += 1
            if calls != number + 1:
                return function(worker)
            self.known = max(self.known, *seconds_of(self._directory)) + _LOST
            self._time.add(_LOST)
            raise error

        with clock_from_now(), self._monkeypatch.context() as patched:
            patched.setattr(Worker, "_train_steps", steps)
            train(self._directory, *INLINE, *more)


def test_time_goes_on_over_attempts_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = _Cut(monkeypatch, tmp_path)
    cut.train(2, RuntimeError, "distributed.max_failures=1", "distributed.checkpoint_every=100")
    assert seconds_of(tmp_path) == sorted(seconds_of(tmp_path))
    assert seconds_of(tmp_path)[1] > cut.known > _LOST
    result = result_of(tmp_path)
    assert result["wall_seconds"] >= seconds_of(tmp_path)[-1] - 1e-3
    assert result["train_seconds"] < result["wall_seconds"] - cut.known, "of the steps that count"
    assert result["startup_seconds"] < result["wall_seconds"] - cut.known, "of the last attempt"


def test_time_goes_on_over_commands_that_were_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = _Cut(monkeypatch, tmp_path)
    seldom = "distributed.checkpoint_every=2"
    for epochs in (3, 0, 0):  # after the second and the third, no event is left of the time before
        more = [] if epochs else ["resume=true"]
        with pytest.raises(KeyboardInterrupt):
            cut.train(epochs, KeyboardInterrupt, seldom, *more)
    cut.train(100, KeyboardInterrupt, seldom, "resume=true")
    assert seconds_of(tmp_path) == sorted(seconds_of(tmp_path))
    third = seconds_of(tmp_path, '"epoch": 3')[1]
    assert third > cut.known > 3 * _LOST
    assert result_of(tmp_path)["wall_seconds"] >= seconds_of(tmp_path)[-1] - 1e-3


def test_the_last_epoch_of_a_shorter_run_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = ["distributed.evaluate_every=10", "target.metric=test/accuracy", "target.value=0.01"]
    with pytest.raises(KeyboardInterrupt):
        _Cut(monkeypatch, tmp_path).train(2, KeyboardInterrupt, *choice)
    assert events_of(tmp_path, "evaluate") == []

    train(tmp_path, *INLINE, *choice, "resume=true", epochs=2)

    [evaluated] = events_of(tmp_path, "evaluate")
    assert evaluated["epoch"] == 2
    target = result_of(tmp_path)["target"]
    assert (target["reached"], target["epochs"]) == (True, 2)
    train(tmp_path, *INLINE, *choice, "resume=true", epochs=2)
    assert events_of(tmp_path, "evaluate") == [evaluated]
    assert result_of(tmp_path)["target"] == target


def test_a_new_target_sees_a_run_that_is_done(tmp_path: Path) -> None:
    choice = [*INLINE, "target.metric=test/accuracy"]
    train(tmp_path, *choice, "target.value=1.0", epochs=1)
    assert not result_of(tmp_path)["target"]["reached"]
    train(tmp_path, *choice, "target.value=0.01", "resume=true", epochs=1)
    assert result_of(tmp_path)["target"]["reached"]


def test_a_finished_run_resumed_says_the_same_again(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *INLINE, epochs=2)
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    train(again, *INLINE, "resume=true", epochs=2)
    _same(whole, again)


# Of the 11 steps of an epoch; the last three checkpoints of two epochs are 15, 20 and 22.
_STEPS = "distributed.checkpoint_every_steps=5"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_cut_in_mid_epoch_equals_one_in_one_go(optimizer: str, tmp_path: Path) -> None:
    choice = [*INLINE, f"optimizer={optimizer}", "distributed.lr_schedule=cosine"]
    whole = train(tmp_path / "whole", *choice, epochs=2)
    often = train(tmp_path / "often", *choice, _STEPS, epochs=2)
    _same(whole, often)
    parts = cut(often, tmp_path / "parts", after=1)
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["00000015"]
    train(parts, *choice, "resume=true", epochs=2)
    _same(whole, parts)


def test_two_ranks_cut_in_mid_epoch_equal_two_in_one_go(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *TORCHRUN, _STEPS, epochs=2)
    parts = cut(whole, tmp_path / "parts", after=1)
    train(parts, *TORCHRUN, "resume=true", epochs=2)
    _same(whole, parts)


@pytest.mark.slow
def test_every_example_is_seen_once_though_the_world_size_changes_in_mid_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed.launch.torchrun, "available_cpus", lambda: 4)
    whole = train(tmp_path / "whole", *INLINE, epochs=2)
    two = train(tmp_path / "two", *TORCHRUN, _STEPS, epochs=2)
    for workers in (1, 4):
        parts = cut(two, tmp_path / str(workers), after=1)
        choice = [*TORCHRUN, f"distributed.workers={workers}"]
        train(parts, *choice, "resume=true", epochs=2)
        _alike(whole, parts)


def test_another_model_is_refused_before_any_work(tmp_path: Path) -> None:
    parts = train(tmp_path, *INLINE, _STEPS, epochs=2)
    before = {path: path.stat().st_mtime_ns for path in parts.rglob("*") if path.is_file()}
    with pytest.raises(RunDirectoryError, match=r"model\.hidden=\[16\].*resume") as refused:
        train(parts, *INLINE, "resume=true", "model.hidden=[17]", epochs=3)
    assert refused.value.exit_code == 2
    after = {path: path.stat().st_mtime_ns for path in parts.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= {parts / ".lock"}


def _alike(one: Path, other: Path) -> None:
    assert_close(one, other)
    mine, theirs = ([e["train/loss"] for e in events_of(d, "train")] for d in (one, other))
    assert theirs == pytest.approx(mine, rel=1e-5)
    seen = [[e["examples_seen"] for e in events_of(d, "train")] for d in (one, other)]
    assert seen[0] == seen[1] == [1294, 2 * 1294]


def test_another_world_size_goes_on_with_the_same_order(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *INLINE, epochs=2)
    parts = train(tmp_path / "parts", *TORCHRUN, epochs=1)
    train(parts, *INLINE, "resume=true", epochs=2)
    _alike(whole, parts)
