"""What `heliotrope plan` foretells of data-parallel runs is what they then count and hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distributed.planning.launch import Launch, Units
from distributed.planning.measurement import measured
from heliotrope.data import load
from heliotrope.models import build
from heliotrope.tasks import task_of
from tests.distributed_runs import MOMENTUM, RAY, SMALL, result_of, train
from tests.support import ROOT, compose, environment

_EPOCHS = 2
_KINDS = [
    ("model.hidden=[7,5]", "distributed.accumulation_steps=4"),
    ("distributed.strategy=fsdp", "distributed.accumulation_steps=2"),
    ("distributed.strategy=fsdp", "distributed.precision=bf16"),
    ("distributed.strategy=local_sgd", "distributed.diloco.local_steps=4"),
    (
        "distributed.strategy=diloco",
        "distributed.diloco.local_steps=3",
        "distributed.diloco.exchange=int8",
    ),
]


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    "kind",
    _KINDS,
    ids=lambda kind: " ".join(kind[:2]),
)
def test_bytes_of_a_run_are_those_of_its_plan(
    kind: tuple[str, ...], ray_session: object, tmp_path: Path
) -> None:
    keys = (*RAY, *kind, f"distributed.epochs={_EPOCHS}", MOMENTUM)
    run = compose("distributed", *SMALL, *keys)
    dataset = load(run.data, run.seed)
    task = task_of(dataset, run)
    found = measured(run, dataset, task, 64, 1)
    units = Units.of(build(run.model, task, run.seed))
    launch = Launch(run.distributed, 2, len(dataset.train), found, units)
    train(tmp_path, *RAY, *kind, epochs=_EPOCHS)
    result = result_of(tmp_path)
    up, down = (_EPOCHS * launch.exchanges * sent for sent in launch.exchange_bytes)
    assert (result["steps"], result["bytes_up"], result["bytes_down"]) == (
        _EPOCHS * launch.steps,
        up,
        down,
    )


@pytest.mark.slow
def test_memory_of_ranks_is_within_a_tenth_of_its_plan(tmp_path: Path) -> None:
    """Of one, two and four processes, as the system has it in a step.

    Where activations hold most of it, or hardly any, FSDP needs less than is foretold.
    """
    script = ROOT / "scripts" / "benchmarks" / "plan.py"
    keys = (
        "--hidden=1500",
        "--batch-size=256",
        "--patience=0",
        f"--output={tmp_path / 'plan.json'}",
    )
    done = subprocess.run(
        [sys.executable, str(script), *keys],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert len(rows) == 11  # four strategies; fsdp not alone
    for row in rows:
        held, foretold = row["memory"]
        assert foretold == pytest.approx(held, rel=0.1), row
        counted, told = row["bytes"]
        assert counted == told, row
