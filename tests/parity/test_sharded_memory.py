"""A sharded worker holds its part of the training state, and of one layer all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, environment

_WIDTH, _LAYERS, _WORKERS = 1024, 12, 2
_BYTES = 16  # of a parameter: weight, gradient and two moments of Adam; of a layer the same, whole
_OTHERS = 0.1  # more, for activations and the exchange


@pytest.mark.slow
def test_the_most_memory_is_a_part_of_the_state_and_one_layer(tmp_path: Path) -> None:
    """From the start to a checkpoint; see docs/benchmarks.md for what the layer's bytes are."""
    script = ROOT / "scripts" / "benchmarks" / "sharded_memory.py"
    size = (f"--width={_WIDTH}", f"--layers={_LAYERS}", f"--processes={_WORKERS}")
    done = subprocess.run(
        [sys.executable, str(script), *size, f"--output={tmp_path / 'found.json'}"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = json.loads((tmp_path / "found.json").read_text())[f"{_WORKERS} processes"]
    assert len(ranks) == _WORKERS
    for rank in ranks:
        parameters = rank.pop("parameters")
        assert parameters > 10_000_000
        bar = _BYTES * (parameters / _WORKERS + _WIDTH * (_WIDTH + 1))
        assert all(most < (1 + _OTHERS) * bar for most in rank.values()), (rank, bar)
