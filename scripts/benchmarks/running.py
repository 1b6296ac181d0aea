"""Runs a peer in a process of its own, and waits for the machine to be idle before."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Entry", "run", "wait_until_idle"]

_ROOT = Path(__file__).resolve().parents[2]
_PEERS = Path(__file__).resolve().parent / "peers"
_TIMEOUT = 900  # seconds, of one run
_IDLE = 0.1  # CPUs that are less busy than this count as idle


@dataclass(frozen=True)
class Entry:
    """A peer in one of its settings."""

    label: str
    peer: str
    script: str
    variant: str
    processes: int = 1  # more than one: started by torchrun


def run(entry: Entry, python: str, *arguments: str) -> dict[str, Any]:
    """Run an entry in a process of its own; return what it prints, and its `wall` seconds."""
    environment = dict(os.environ)
    launcher = [python]
    if entry.peer == "heliotrope":  # from this checkout, also where it is not installed
        environment["PYTHONPATH"] = str(_ROOT)
    if entry.processes > 1:
        environment["OMP_NUM_THREADS"] = "1"
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc-per-node={entry.processes}"]
    command = [*launcher, str(_PEERS / entry.script), f"--variant={entry.variant}", *arguments]
    started = time.perf_counter()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
    wall = time.perf_counter() - started
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(
            f"{entry.label} failed with exit code {done.returncode}: {' '.join(command)}\n"
            f"{done.stderr[-4000:]}"
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer | {"wall": wall}


def wait_until_idle(patience: float) -> float:
    """Wait until the CPUs have nothing to do; return the share of them that was busy last."""
    deadline = time.monotonic() + patience
    while True:
        before = _cpu_ticks()
        time.sleep(1.0)
        total, idle = (after - first for after, first in zip(_cpu_ticks(), before, strict=True))
        busy = 1 - idle / total
        if busy < _IDLE or time.monotonic() > deadline:
            return busy


def _cpu_ticks() -> tuple[int, int]:
    """Return clock ticks of all CPUs since the start, in all and idle (proc(5))."""
    first, *_ = Path("/proc/stat").read_text().splitlines()
    ticks = [int(value) for value in first.split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]
