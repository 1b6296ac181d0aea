"""Training on a table that stays in files against training on the same table in memory.

    python scripts/benchmarks/streaming.py --repeats 3 --output streaming.json

Rows of float32 numbers in Parquet files are trained on by the same run, once from memory and once
from the file that they are converted into, in turn. Printed are examples/s after the first
epoch, the ratio of the medians, and the share of a step that was spent on waiting for data. The
exit code is 1 if training from files took more than 1.05 times as long.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import record
from rich.table import Table

_ROOT = Path(__file__).resolve().parents[2]
_MOST = 1.05  # times the time in memory
_EPOCHS = 4  # of which the first is not counted
_MEMORY = {"memory": 1 << 20, "files": 0}  # data.memory_mib


def main() -> int:
    """Write the table, train in turn, and return the exit code."""
    parser = record.parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--hidden", default="[256,256]", help="of the mlp")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results = record.begin()
    found: dict[str, list[dict[str, float]]] = {where: [] for where in _MEMORY}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        _write(data, options.rows, options.columns)
        for number in range(options.repeats):
            for where, memory in _MEMORY.items():
                keys = [f"data.path={data}", f"data.memory_mib={memory}"]
                keys += [f"model.hidden={options.hidden}"]
                keys += [f"distributed.batch_size={options.batch_size}"]
                found[where].append(_train(Path(folder), f"{where}-{number}", keys))
    table = Table("rows from", "examples/s", "waiting for data")
    rates = {where: [run["rate"] for run in runs] for where, runs in found.items()}
    for where, runs in found.items():
        wait = statistics.median(run["wait"] for run in runs)
        table.add_row(where, ", ".join(f"{rate:,.0f}" for rate in rates[where]), f"{wait:.1%}")
    ratio = statistics.median(rates["memory"]) / statistics.median(rates["files"])
    record.console().print(table)
    record.console().print(f"from files a step takes {ratio:.3f} times as long")
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    record.finish(results | {"settings": settings, "runs": found, "ratio": ratio}, options.output)
    return int(ratio > _MOST)


def _write(folder: Path, rows: int, columns: int) -> None:
    """Write four files of random numbers, of which one tells what is to be predicted."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        numbers = generator.standard_normal((columns, rows // 4), dtype=np.float32)
        named = {f"x{index}": values for index, values in enumerate(numbers)}
        table = pa.table({**named, "y": (numbers[0] > 0).astype(np.int8)})
        pyarrow.parquet.write_table(table, folder / f"{number}.parquet")


def _train(folder: Path, name: str, keys: list[str]) -> dict[str, Any]:
    """Return examples/s, and the share of waiting, of the epochs after the first: their medians."""
    directory = folder / name
    command = [sys.executable, "-m", "distributed", "model=mlp", "data=table", "data.target=y"]
    command += [*keys, f"distributed.epochs={_EPOCHS}", f"distributed.evaluate_every={_EPOCHS}"]
    command += ["distributed.launcher=inline", "distributed.workers=1"]
    command += ["distributed.cpus_per_worker=1", f"hydra.run.dir={directory}"]
    done = subprocess.run(
        command,
        cwd=_ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"training failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    events = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    timings = [event["timing"] for event in events if event["event"] == "train"][1:]
    return {
        "rate": statistics.median(timing["examples_per_second"] for timing in timings),
        "wait": statistics.median(timing["data_ms"] / timing["step_ms"] for timing in timings),
    }


if __name__ == "__main__":
    sys.exit(main())
