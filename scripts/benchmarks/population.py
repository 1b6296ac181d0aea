"""What a round costs as the population grows to a million clients, and as the cohort grows.

    python scripts/benchmarks/population.py --output population.json --plot population.svg

The model and settings of workload A. Clients hold overlapping windows of Fashion-MNIST, since no
dataset here has examples for so many. Start-up is from process start to the first round begun;
memory is the peak of the whole run, of all processes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import record
from matplotlib.figure import Figure
from rich.table import Table
from running import Entry, run, wait_until_idle
from workloads import WORKLOADS, windows, write

_WARM_UP = 2  # rounds that do not count


@dataclass(frozen=True)
class Point:
    """One run: milliseconds are those of each timed round."""

    clients: int
    cohort: int
    milliseconds: list[float]
    startup_seconds: float
    peak_rss_bytes: int
    client_training: str
    busy: float

    @property
    def typical(self) -> float:
        """Median milliseconds a round."""
        return median(self.milliseconds)


def main() -> int:
    """Measure, print a table, and store and plot it."""
    options = _options()
    console = record.console()
    shapes = [(clients, options.cohort) for clients in options.clients]
    shapes += [(options.clients[-1], cohort) for cohort in options.cohorts]
    said = record.begin() | {
        "pool": options.pool,
        "rounds": options.rounds,
        "examples_per_client": options.examples,
    }
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as folder:
        for clients, cohort in shapes:
            points.append(_measure(clients, cohort, options, Path(folder) / "population.json"))
            console.print(_row(points[-1]), style="dim")
    said["points"] = [asdict(point) for point in points]
    console.print(_table(points, options))
    record.finish(said, options.output)
    if options.plot:
        _plot(points[: len(options.clients)], points[len(options.clients) :], options.plot)
    return 0


def _options() -> argparse.Namespace:
    parser = record.parser(__doc__)
    parser.add_argument("--clients", type=_numbers, default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--cohort", type=int, default=1000, help="clients a round")
    parser.add_argument(
        "--cohorts", type=_numbers, default=[100, 10000], help="others, of the largest population"
    )
    parser.add_argument("--examples", type=int, default=10, help="of each client")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pool", default="inprocess", help="inprocess, or ray=WORKERS")
    parser.add_argument("--plot", type=Path, help="SVG or PNG file")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _measure(clients: int, cohort: int, options: argparse.Namespace, path: Path) -> Point:
    workload = replace(
        WORKLOADS["A"], divide=windows(clients, options.examples), clients_per_round=cohort
    )
    write(workload, path)
    entry = Entry("heliotrope", "heliotrope", "cohort_engine.py", options.pool)
    busy = wait_until_idle(options.patience)
    launched = time.time()
    answer = run(entry, sys.executable, str(path), f"--rounds={options.rounds + _WARM_UP}")
    return Point(
        clients=clients,
        cohort=cohort,
        milliseconds=(1e3 * np.diff(answer["times"])[_WARM_UP:]).tolist(),
        startup_seconds=answer["times"][0] - launched,
        peak_rss_bytes=answer["peak_rss_bytes"],
        client_training=answer["client_training"],
        busy=busy,
    )


def _row(point: Point) -> str:
    return (
        f"{point.clients:,} clients, {point.cohort:,} a round: {point.typical:.1f} ms a round, "
        f"{point.peak_rss_bytes / 2**30:.2f} GiB, start {point.startup_seconds:.2f} s"
    )


def _table(points: Sequence[Point], options: argparse.Namespace) -> Table:
    title = f"{options.examples} examples a client, model of A, pool {options.pool}"
    table = Table(title=title, title_justify="left")
    for column in (
        "clients",
        "a round",
        "ms/round best",
        "median",
        "worst",
        "ms/client",
        "peak memory",
        "start-up",
        "training",
    ):
        table.add_column(column, justify="right")
    for point in points:
        table.add_row(
            f"{point.clients:,}",
            f"{point.cohort:,}",
            f"{min(point.milliseconds):.1f}",
            f"{point.typical:.1f}",
            f"{max(point.milliseconds):.1f}",
            f"{point.typical / point.cohort:.3f}",
            f"{point.peak_rss_bytes / 2**30:.2f} GiB",
            f"{point.startup_seconds:.2f} s",
            point.client_training,
        )
    return table


def _plot(by_clients: Sequence[Point], by_cohort: Sequence[Point], path: Path) -> None:
    """Draw round time, memory and start-up over the population, round time over the cohort."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    time_axes, memory_axes, start_axes, cohort_axes = figure.subplots(1, 4)
    clients = [point.clients for point in by_clients]
    cohort = by_clients[0].cohort
    time_axes.plot(clients, [point.typical for point in by_clients], "o-")
    time_axes.set_title(f"ms a round of {cohort:,}")
    memory_axes.plot(clients, [point.peak_rss_bytes / 2**30 for point in by_clients], "o-")
    memory_axes.set_title("peak memory, GiB")
    start_axes.plot(clients, [point.startup_seconds for point in by_clients], "o-")
    start_axes.set_title("start-up, s")
    for axes in (time_axes, memory_axes, start_axes):
        axes.set(xscale="log", xlabel="clients in all")
        axes.set_ylim(0, 1.15 * axes.dataLim.ymax)
    cohorts = sorted([by_clients[-1], *by_cohort], key=lambda point: point.cohort)
    sizes = [point.cohort for point in cohorts]
    cohort_axes.plot(sizes, [point.typical for point in cohorts], "o-")
    cohort_axes.set(xscale="log", yscale="log", xlabel="clients a round")
    cohort_axes.set_title(f"ms a round, of {clients[-1]:,}")
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
