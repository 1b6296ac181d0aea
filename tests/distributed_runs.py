"""Small data-parallel runs for tests, in this process or in one of their own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distributed.job import run_job
from tests.support import ROOT, compose, environment, weights_of

# One thread a worker: sums are added in the same order whatever machine or launcher.
SMALL = (
    "model.hidden=[16]",
    "model.dropout=0.2",
    "optimizer.lr=0.05",
    "distributed.cpus_per_worker=1",
    "distributed.batch_size=128",
    "seed=5",
)
MOMENTUM = "optimizer.momentum=0.9"  # of SGD, which is the default
INLINE = ("distributed.launcher=inline", "distributed.workers=1")
RAY = ("distributed.launcher=ray", "distributed.workers=2")
TORCHRUN = ("distributed.launcher=torchrun", "distributed.workers=2")


def train(directory: Path, *overrides: str, epochs: int = 4) -> Path:
    """Run `SMALL` with `overrides` in this process; return its directory."""
    sgd = not any(override.startswith("optimizer=") for override in overrides)
    overrides += (MOMENTUM,) if sgd else ()
    run_job(compose("distributed", *SMALL, f"distributed.epochs={epochs}", *overrides), directory)
    return directory


def seconds_of(directory: Path, part: str = '"seconds"') -> list[float]:
    """Return 0, for none yet, and what the events, those that hold `part`, say of the time."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [0.0, *(json.loads(line)["seconds"] for line in lines if part in line)]


def result_of(directory: Path) -> dict[str, Any]:
    """Return what a finished run says of itself."""
    found: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return found


def assert_close(
    one: Path | dict[str, torch.Tensor], other: Path, rtol: float = 1e-4, atol: float = 1e-6
) -> None:
    """Fail unless a run ended with the weights of another, or with those given, to rounding."""
    left, right = weights_of(one) if isinstance(one, Path) else one, weights_of(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=rtol, atol=atol, msg=name)


def cut(directory: Path, copy: Path, after: int) -> Path:
    """Copy a finished run as it was when it was killed after its checkpoint number `after`."""
    shutil.copytree(directory, copy)
    (copy / "result.json").unlink()
    for path in sorted((copy / "checkpoints").iterdir())[after:]:
        shutil.rmtree(path)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "half a li')
    return copy


class Job(subprocess.Popen[str]):
    """A command whose output goes to a file: a pipe that nobody reads would fill, and stop it."""

    def __init__(self, command: list[str], output: Path, cwd: Path = ROOT) -> None:
        self._output = output
        with output.open("w") as file:
            super().__init__(
                command,
                cwd=cwd,
                env=environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def ended(self, seconds: float = 60.0) -> str:
        """Wait until it has ended; return all that it printed."""
        self.wait(seconds)
        return self._output.read_text()


@contextmanager
def process(directory: Path, *overrides: str, mode: str = "distributed") -> Iterator[Job]:
    """Start `SMALL` with `overrides` as a command in a session of its own."""
    small = [*SMALL, MOMENTUM] if mode == "distributed" else []
    command = [sys.executable, "-m", mode, *small, *overrides]
    output = directory.with_name(f"{directory.name}.output")
    started = Job([*command, f"hydra.run.dir={directory}"], output)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def wait_until(condition: Any, seconds: float = 300.0) -> Any:
    """Return what `condition` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return answer


def ready(directory: Path) -> bool:
    """Return whether a worker of a run is about to train."""
    log = directory / "run.log"
    return log.exists() and "ready: process" in log.read_text()


def process_of_rank(directory: Path, rank: int, attempt: int = 1) -> int | None:
    """Return the process id of a rank, once its `attempt` has come up; it is in the run's log."""
    log = directory / "run.log"
    text = log.read_text() if log.exists() else ""
    found = re.findall(rf"\[rank {rank}\] .*ready: process (\d+) ", text)
    return int(found[attempt - 1]) if len(found) >= attempt else None


def checkpoints(directory: Path) -> int:
    """Return how many checkpoints a run has."""
    return len(list((directory / "checkpoints").glob("[0-9]*")))


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and awaits its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False
