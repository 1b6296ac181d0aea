"""Parity 6, distributed: a run that was cut ends with the weights of one that was not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import distributed.torchrun
from tests.distributed_runs import (
    INLINE,
    TORCHRUN,
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


def test_another_world_size_goes_on_with_the_same_order(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *INLINE, epochs=2)
    parts = train(tmp_path / "parts", *TORCHRUN, epochs=1)
    train(parts, *INLINE, "resume=true", epochs=2)
    for name, value in weights_of(whole).items():
        assert value.allclose(weights_of(parts)[name], rtol=1e-4, atol=1e-6), name
