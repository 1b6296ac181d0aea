"""Parity 6, distributed: a run that was cut ends with the weights of one that was not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import distributed.torchrun
from heliotrope.errors import RunDirectoryError
from tests.distributed_runs import (
    INLINE,
    TORCHRUN,
    assert_close,
    checkpoints,
    cut,
    events_of,
    process,
    train,
    wait_until,
    weights_of,
)
from tests.support import assert_same_tensors, fresh_seed

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


@pytest.mark.slow
def test_three_ranks_add_in_the_same_order_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With two ranks any order of the sum is the same; with three it shows in the last bits.
    monkeypatch.setattr(distributed.torchrun, "available_cpus", lambda: 3)
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
    monkeypatch.setattr(distributed.torchrun, "available_cpus", lambda: 4)
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
