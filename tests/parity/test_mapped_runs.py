"""Runs on data in a file: resumed in mid-epoch, on two workers, and in both modes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distributed.job import run_job
from tests.distributed_runs import INLINE, RAY, assert_close, cut
from tests.support import ROOT, assert_same_tensors, compose, environment, events_of, weights_of

pytestmark = pytest.mark.usefixtures("no_report")

_GPT = (
    *("model=gpt", "model.width=16", "model.layers=1", "model.heads=2", "optimizer=adam"),
    *("data=token_stream", "data.vocabulary=50", "data.length=8"),
    *("distributed.batch_size=16", "distributed.epochs=2", "distributed.cpus_per_worker=1"),
)


@pytest.fixture
def stream(tmp_path: Path, rng: np.random.Generator) -> str:
    path = tmp_path / "tokens.bin"
    rng.integers(0, 50, 3_000).astype(np.uint16).tofile(path)
    return f"data.path={path}"


def _train(directory: Path, *overrides: str) -> Path:
    run_job(compose("distributed", *_GPT, *overrides), directory)
    return directory


def test_a_run_killed_in_mid_epoch_ends_as_one_in_one_go(stream: str, tmp_path: Path) -> None:
    choice = (stream, *INLINE, "distributed.checkpoint_every_steps=5", "distributed.keep_last=99")
    whole = _train(tmp_path / "whole", *choice)
    resumed = cut(whole, tmp_path / "cut", after=2)  # step 10 of 22
    _train(resumed, *choice, "resume=true")
    assert_same_tensors(weights_of(whole), weights_of(resumed))
    assert events_of(whole) == events_of(resumed)


@pytest.mark.usefixtures("ray_session")
def test_two_workers_that_read_one_file_train_as_one(stream: str, tmp_path: Path) -> None:
    # Not Adam: the gradient of a key's bias is rounding alone, which Adam scales up.
    choice = (stream, "optimizer=sgd", "optimizer.lr=0.1")
    one = _train(tmp_path / "one", *choice, *INLINE)
    two = _train(tmp_path / "two", *choice, *RAY)
    assert_close(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "limit"), [("images", 512), ("parquet", 640)])  # MiB
def test_four_times_the_memory_that_a_run_may_have_is_trained_on(
    data: str, limit: int, tmp_path: Path
) -> None:
    output = tmp_path / "found.json"
    script = [sys.executable, str(ROOT / "scripts/benchmarks/beyond_memory.py"), f"--limit={limit}"]
    done = subprocess.run(
        [*script, f"--data={data}", "--patience=0", f"--output={output}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert found["data"] >= 4 * found["limit"] > 4 * found["most"]
