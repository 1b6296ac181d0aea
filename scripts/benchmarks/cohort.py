"""Milliseconds a round of the cohort engine and of its peers, measured in turn on this machine.

    python scripts/benchmarks/cohort.py --workloads A,B --repeats 5 --output cohort.json

All peers read the same examples, clients, initial weights and settings. Timed are whole rounds
(draw, broadcast, train, aggregate) without evaluation, after the first few; each repetition is
a fresh process, and the peers take turns, so that a busy moment hits all of them. A first short
run of each gives its start-up and its weights, whose loss must be that of the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import record
import torch
from peers.problem import mean_loss, read
from rich.console import Console
from rich.table import Table
from running import Entry, run, wait_until_idle
from workloads import WORKLOADS, Workload, write

from heliotrope.system.resources import available_cpus

_CHECK_ROUNDS = 5  # of the first run, whose weights are compared
_WARM_UP = 3  # rounds at the start of each timed run that do not count
_FEWEST, _MOST = 5, 300  # rounds of a timed run
_LOSS_TOLERANCE = 0.15  # cohorts differ between the peers


@dataclass
class Measured:
    """What was measured of one entry; seconds, unless the name says otherwise."""

    entry: Entry
    versions: Mapping[str, str]
    first_round_begun: float  # since the process was started
    first_round_done: float
    loss: float  # over all clients' examples, after the first run
    notes: Mapping[str, Any]
    estimate: float  # of a round, to choose how many to time
    rounds: list[list[float]] = field(default_factory=list)  # [repetitions][rounds]
    busy: list[float] = field(default_factory=list)  # share of CPUs, just before each repetition

    @property
    def milliseconds(self) -> list[float]:
        """Mean milliseconds a round of each repetition."""
        return [1e3 * sum(rounds) / len(rounds) for rounds in self.rounds]


def entries() -> list[Entry]:
    """Return all that is measured, ours first."""
    cpus = available_cpus()
    ours, bare, pfl = "cohort_engine.py", "bare_loop.py", "pfl_simulation.py"
    counts = sorted({1, cpus})
    return [
        Entry("heliotrope, in-process", "heliotrope", ours, "inprocess"),
        Entry("heliotrope, in-process, private", "heliotrope", ours, "inprocess,private"),
        Entry("heliotrope, one after another", "heliotrope", ours, "sequential"),
        Entry(f"heliotrope, Ray pool of {cpus}", "heliotrope", ours, f"ray={cpus}"),
        *(Entry(f"bare loop, {n} thread(s)", "bare", bare, f"threads={n}") for n in counts),
        Entry(f"bare loop, {cpus} processes", "bare", bare, f"processes={cpus}"),
        *(Entry(_pfl_label(n, cpus), "pfl", pfl, f"threads={n}") for n in counts),
        *(
            Entry(f"{_pfl_label(n, cpus)}, private", "pfl", pfl, f"threads={n},private")
            for n in counts
        ),
        Entry(f"pfl, {cpus} processes (torchrun)", "pfl", pfl, "threads=1", processes=cpus),
        Entry("Flower, as it ships", "flower", "flower_simulation.py", "shipped"),
        Entry("Flower, one CPU a client", "flower", "flower_simulation.py", "tuned"),
    ]


def _pfl_label(threads: int, cpus: int) -> str:
    shipped = ", as it ships" if threads == cpus else ""  # torch's default is a thread a core
    return f"pfl, {threads} thread(s){shipped}"


def main() -> int:
    """Measure, print a table for each workload, and store everything."""
    options = _options()
    console = record.console()
    chosen = [entry for entry in entries() if entry.peer in options.peers]
    pythons = record.interpreters((entry.peer for entry in chosen), options)
    said = record.begin() | {"workloads": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.workloads:
            path = Path(folder) / f"{name}.json"
            write(WORKLOADS[name], path)
            measured = _measure(chosen, pythons, path, options, console)
            console.print(_table(name, WORKLOADS[name], measured))
            console.print(f"versions: {_versions(measured)}")
            said["workloads"][name] = {
                "title": WORKLOADS[name].title,
                "config": json.loads(path.read_text()),
                "results": [_stored(result) for result in measured],
            }
            record.finish(said, options.output)  # after each workload: they take minutes
    return 0


def _options() -> argparse.Namespace:
    parser = record.with_peers(record.parser(__doc__))
    parser.add_argument("--workloads", type=record.names(WORKLOADS), default=list("ABC"))
    peers = ["heliotrope", "bare", "pfl", "flower"]
    parser.add_argument("--peers", type=record.names(peers), default=peers)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="to time in each repetition")
    return parser.parse_args()


def _measure(
    chosen: list[Entry],
    pythons: Mapping[str, str],
    problem: Path,
    options: argparse.Namespace,
    console: Console,
) -> list[Measured]:
    results = []
    for entry in chosen:
        console.print(f"{problem.stem}: first run of {entry.label}", style="dim")
        wait_until_idle(options.patience)
        results.append(_first_run(entry, pythons[entry.peer], problem))
    _check_losses(results)
    for repeat in range(options.repeats):
        for result in results:
            rounds = round(options.seconds / result.estimate)
            rounds = min(_MOST, max(_FEWEST, rounds)) + _WARM_UP
            result.busy.append(wait_until_idle(options.patience))
            answer = run(
                result.entry, pythons[result.entry.peer], str(problem), f"--rounds={rounds}"
            )
            result.rounds.append(np.diff(answer["times"])[_WARM_UP:].tolist())
            console.print(
                f"{problem.stem}: {repeat + 1}/{options.repeats} {result.entry.label}: "
                f"{result.milliseconds[-1]:.1f} ms a round (CPUs {result.busy[-1]:.0%} busy)",
                style="dim",
            )
    return results


def _first_run(entry: Entry, python: str, problem: Path) -> Measured:
    weights = problem.with_name("weights.npz")
    launched = time.time()
    wanted = (f"--rounds={_CHECK_ROUNDS}", f"--weights={weights}")
    answer = run(entry, python, str(problem), *wanted)
    begun, first, *_, last = answer.pop("times")
    return Measured(
        entry=entry,
        versions=answer.pop("versions"),
        first_round_begun=begun - launched,
        first_round_done=first - launched,
        loss=_loss(problem, weights),
        notes=answer,
        estimate=(last - first) / (_CHECK_ROUNDS - 1),
    )


def _loss(problem: Path, weights: Path) -> float:
    """Return the mean loss over the examples of all clients."""
    given = read(problem)
    model = given.module()
    with np.load(weights) as file:
        model.load_state_dict({name: torch.from_numpy(file[name]) for name in file.files})
    with torch.no_grad():
        total = sum(
            float(mean_loss(model(given.inputs[rows]), given.targets[rows])) * len(rows)
            for rows in given.indices.split(1000)
        )
    return total / len(given.indices)


def _check_losses(results: list[Measured]) -> None:
    """Refuse to compare peers that do not learn alike: they would not do the same work."""
    typical = median(result.loss for result in results)
    for result in results:
        if not abs(result.loss / typical - 1) < _LOSS_TOLERANCE:
            raise SystemExit(
                f"{result.entry.label}: loss {result.loss:.4f} after {_CHECK_ROUNDS} rounds, "
                f"where {typical:.4f} is typical. It does not train as the others do."
            )


def _table(name: str, workload: Workload, results: list[Measured]) -> Table:
    table = Table(title=f"{name}: {workload.title}", title_justify="left")
    table.add_column("")
    for column in (
        "ms/round best",
        "median",
        "worst",
        "rounds/s",
        "× ours",
        f"loss after {_CHECK_ROUNDS}",
        "first round begun",
        "done",
    ):
        table.add_column(column, justify="right")
    ours = [result for result in results if result.entry.peer == "heliotrope"]
    best = min((min(result.milliseconds) for result in ours), default=None)
    for result in results:
        spent = result.milliseconds
        kind = result.notes.get("client_training")
        table.add_row(
            result.entry.label + (f" ({kind})" if kind else ""),
            f"{min(spent):.1f}",
            f"{median(spent):.1f}",
            f"{max(spent):.1f}",
            f"{1e3 / min(spent):.2f}",
            f"{min(spent) / best:.2f}" if best else "",
            f"{result.loss:.4f}",
            f"{result.first_round_begun:.2f} s",
            f"{result.first_round_done:.2f} s",
        )
    return table


def _versions(results: list[Measured]) -> str:
    found = {f"{name} {number}" for result in results for name, number in result.versions.items()}
    return ", ".join(sorted(found))


def _stored(result: Measured) -> dict[str, Any]:
    return {**asdict(result), "milliseconds_per_round": result.milliseconds}


if __name__ == "__main__":
    sys.exit(main())
