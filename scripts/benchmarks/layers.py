"""What recurrent layers, attention and embeddings gain by captured and stacked steps.

    python scripts/benchmarks/layers.py --output layers.json

The models of workloads `lstm` to `embedding` of `cohort.py`, which runs them beside the peers. In
one process, on one thread, rounds of local training take turns: one client after another by
torch's own kernels, captured steps of a client, and a stack of all. All see the same weights and
examples, and how far their updates are apart is told too. Times are processor time, so that other
programs matter little; a ratio says how many times as long the first way takes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import record
from rich.table import Table
from running import Entry, run, wait_until_idle
from workloads import WORKLOADS, write

_LAYERS = ["lstm", "gru", "encoder", "embedding"]


def main() -> int:
    """Measure, print a table, and store everything."""
    options = _options()
    said = record.begin() | {"rounds": options.rounds, "results": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.workloads:
            path = Path(folder) / f"{name}.json"
            write(WORKLOADS[name], path)
            for cohort in options.cohorts:
                wait_until_idle(options.patience)
                entry = Entry(f"{cohort} clients", "heliotrope", "local_training.py", str(cohort))
                answer = run(entry, sys.executable, str(path), f"--rounds={options.rounds}")
                said["results"].append({"workload": name, "clients": cohort} | answer)
            record.console().print(_table(said["results"][-len(options.cohorts) :]))
            record.finish(said, options.output)  # after each workload: they take minutes
    return 0


def _options() -> argparse.Namespace:
    parser = record.parser(__doc__)
    parser.add_argument("--workloads", type=record.names(WORKLOADS), default=_LAYERS)
    parser.add_argument("--cohorts", type=_numbers, default=[10, 32])
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _table(results: list[dict[str, Any]]) -> Table:
    table = Table(title="Local training on one thread, medians", title_justify="left")
    table.add_column("")
    for column in ("clients", "sequential ms", "captured", "stacked", "apart", "at most"):
        table.add_column(column, justify="right")
    for result in results:
        typical = {kind: median(values) for kind, values in result["seconds"].items()}
        usual = typical["sequential"]
        table.add_row(
            f"{result['workload']}: {WORKLOADS[result['workload']].title}",
            str(result["clients"]),
            f"{1e3 * usual:.1f}",
            f"{usual / typical['captured']:.2f}x",
            f"{usual / typical['batched']:.2f}x",
            f"{median(result['apart']):.0e}",
            f"{max(result['apart']):.0e}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
