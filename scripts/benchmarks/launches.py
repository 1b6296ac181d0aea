"""What a submitted job waits for its first step, and what jobs of a sweep gain at a time.

    python scripts/benchmarks/launches.py submit --repeats 5 --output submit.json
    python scripts/benchmarks/launches.py sweep --output sweep.json

`submit` starts a Ray cluster of its own here. In turn, the same data-parallel run is started as a
command that finds the cluster, and by `heliotrope submit cluster=ray`; what is compared is the time
from the command to the first optimizer step. `sweep` runs the federated quickstart with 20 seeds,
one after the other by Hydra's own launcher, and at a time by `sweep.parallel=auto`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import record
from rich.table import Table
from running import wait_until_idle

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 120.0  # seconds, for a cluster or a first step
_DISTRIBUTED = ("distributed", "experiment=quickstart", "distributed.launcher=ray",
                "distributed.workers=2", "distributed.epochs=1",
                "distributed.log_every_steps=1")  # fmt: skip
_FEDERATED = ("federated", "-m", "experiment=quickstart")


def main() -> int:
    """Measure, print a table, and store it."""
    parser = record.parser(__doc__)
    parser.add_argument("bar", choices=("submit", "sweep"))
    parser.add_argument("--repeats", type=int, default=3, help="pairs of submit")
    parser.add_argument("--jobs", type=int, default=20, help="of the sweep")
    parser.add_argument("--rounds", type=int, default=20, help="of each job")
    options = parser.parse_args()
    said = record.begin()
    with tempfile.TemporaryDirectory() as folder:
        if options.bar == "submit":
            seconds = _submit(Path(folder), options.repeats, options.patience)
        else:
            seconds = _sweep(Path(folder), options.jobs, options.rounds, options.patience)
    table = Table("way", "median s", "least s", "most s")
    for way, values in seconds.items():
        table.add_row(way, *(f"{each:.2f}" for each in (median(values), min(values), max(values))))
    record.console().print(table)
    one, other = (median(values) for values in seconds.values())
    record.console().print(f"difference {other - one:.2f} s, ratio {other / one:.2f}")
    said |= {"options": {name: str(value) for name, value in vars(options).items()}}
    record.finish(said | {"seconds": seconds}, options.output)
    return 0


def _submit(folder: Path, repeats: int, patience: float) -> dict[str, list[float]]:
    """Return the seconds until the first step of each repeat, started directly and submitted."""
    seconds: dict[str, list[float]] = {"direct": [], "submit": []}
    with _cluster(folder / "ray") as (address, dashboard):
        submit = ("submit", "cluster=ray", f"cluster.address={dashboard}", "--")
        for number in range(repeats + 1):
            for way, words in (("direct", ()), ("submit", submit)):
                wait_until_idle(patience)
                run = folder / f"{way}-{number}"
                command = _command(*words, *_DISTRIBUTED, f"hydra.run.dir={run}")
                took = _first_step(command, run, {"RAY_ADDRESS": address})
                if number:  # the cluster's first processes take longer
                    seconds[way].append(took)
    return seconds


def _first_step(command: list[str], run: Path, environment: dict[str, str]) -> float:
    """Run a command to its end; return the seconds until its run had done a step."""
    started, metrics = time.perf_counter(), run / "metrics.jsonl"
    with subprocess.Popen(
        command, cwd=_ROOT, env=os.environ | environment, stdout=subprocess.DEVNULL
    ) as process:
        while not (metrics.exists() and '"event": "step"' in metrics.read_text()):
            if process.poll() is not None or time.perf_counter() - started > _PATIENCE:
                process.kill()
                raise SystemExit(f"no step was done by {' '.join(command)}")
            time.sleep(0.01)
        took = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode} of {' '.join(command)}")
    return took


def _sweep(folder: Path, jobs: int, rounds: int, patience: float) -> dict[str, list[float]]:
    """Return the seconds of a sweep, its jobs one after the other and at a time."""
    seconds: dict[str, list[float]] = {}
    for way, parallel in (("in turn", 1), ("at a time", "auto")):
        wait_until_idle(patience)
        sweep = folder / way
        words = (f"seed=range({jobs})", f"federated.rounds={rounds}", f"hydra.sweep.dir={sweep}")
        command = _command(*_FEDERATED, *words, f"sweep.parallel={parallel}")
        started = time.perf_counter()
        subprocess.run(command, cwd=_ROOT, stdout=subprocess.DEVNULL, check=True)
        seconds[way] = [time.perf_counter() - started]
        found = [json.loads(path.read_text())["status"] for path in sweep.glob("*/result.json")]
        if found != ["completed"] * jobs:
            raise SystemExit(f"{len(found)} of {jobs} jobs have ended: {found}")
    return seconds


@contextmanager
def _cluster(folder: Path) -> Iterator[tuple[str, str]]:
    """Run a Ray cluster of this machine inside the block; gives its address and its dashboard's."""
    port, dashboard, agent = _free_ports(3)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--node-ip-address=127.0.0.1"]
    command += ["--disable-usage-stats", "--include-dashboard=true"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where jobs find `python`
    node = subprocess.Popen(
        command,
        env={**os.environ, "PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(dashboard)
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
    finally:
        node.terminate()
        node.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "heliotrope", *words]


if __name__ == "__main__":
    sys.exit(main())
