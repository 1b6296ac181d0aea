"""Training on four times the memory that all processes of a run may have.

    python scripts/benchmarks/beyond_memory.py --limit 512 --output beyond_memory.json
    python scripts/benchmarks/beyond_memory.py --data parquet

Images of bytes in a folder of .npy files, or rows of 512 float32 numbers in Parquet files, four
times the limit (in MiB), are trained on for an epoch and then tested on; Parquet files are
converted first. Several times a second the anonymous and the shared memory of the command
and all that it starts are added up (`Pss_Anon` and `Pss_Shmem`: a page that two processes share
counts once). Pages of mapped files are not counted: the operating system takes them back when it
needs memory. The exit code is 1 if the sum was ever above the limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import record
from rich.table import Table

_ROOT = Path(__file__).resolve().parents[2]
_SHAPE = (3, 64, 64)
_COLUMNS = 512
_ROWS = 4096  # that are drawn at once
_GROUP = 4096  # rows of a row group: a page of each column is decoded at a time
_GROUPS = 32  # of a Parquet file
_TIMES = 4  # the limit
_EVERY = 0.1  # seconds between two looks at the memory
_COUNTED = ("Pss_Anon:", "Pss_Shmem:")


def main() -> int:
    """Write the data, train on them, and return the exit code."""
    parser = record.parser(__doc__)
    parser.add_argument("--limit", type=int, default=512, help="MiB that a run may have")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data", choices=list(_KINDS), default="images")
    options = parser.parse_args()
    limit = options.limit << 20
    write, keys = _KINDS[options.data]
    results = record.begin()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        written = write(data, _TIMES * limit)
        found = _train(Path(folder), [*keys, f"data.path={data}"], options.workers)
    results |= {"kind": options.data, "limit": limit, "data": written}
    results |= {"workers": options.workers, **found}
    table = Table(
        "data", "limit", "most memory", "before training", "waiting for data", "examples/s"
    )
    sizes = [f"{results[name] / 2**20:,.0f} MiB" for name in ("data", "limit", "most")]
    timing = f"{found['before']:,.0f} s", f"{found['wait']:.1%}", f"{found['rate']:,.0f}"
    table.add_row(*sizes, *timing)
    record.console().print(table)
    record.finish(results, options.output)
    return int(found["most"] > limit)


def _images(folder: Path, size: int) -> int:
    """Write random images of two brightnesses, and which of the two; return their bytes."""
    count = -(-size // int(np.prod(_SHAPE)))
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, count)
    images = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (count, *_SHAPE))
    noise = generator.integers(0, 128, (_ROWS, *_SHAPE), dtype=np.uint8)
    for start in range(0, count, _ROWS):
        some = labels[start : start + _ROWS].astype(np.uint8)
        images[start : start + _ROWS] = noise[: len(some)] + 100 * some[:, None, None, None]
    images.flush()
    np.save(folder / "y.npy", labels)
    return images.nbytes


def _parquet(folder: Path, size: int) -> int:
    """Write files of random numbers, and the sign of one of them; return the bytes of these."""
    generator = np.random.default_rng(0)
    written = 0
    while written < size:
        schema = pa.schema([*((f"x{n}", pa.float32()) for n in range(_COLUMNS)), ("y", pa.int8())])
        file = folder / f"{written}.parquet"
        with pa.parquet.ParquetWriter(file, schema, use_dictionary=False) as writer:
            for _ in range(_GROUPS):
                numbers = generator.standard_normal((_COLUMNS, _GROUP), dtype=np.float32)
                columns = [*numbers, (numbers[0] > 0).astype(np.int8)]
                writer.write_table(pa.table(columns, schema=schema))
                written += numbers.nbytes
    return written


_KINDS: dict[str, tuple[Callable[[Path, int], int], list[str]]] = {
    "images": (_images, ["data=arrays"]),
    "parquet": (_parquet, ["data=table", "data.target=y", "data.memory_mib=0"]),
}


def _train(folder: Path, keys: list[str], workers: int) -> dict[str, Any]:
    """Train on data of these keys.

    Return the most memory [bytes], the seconds before the first step, the share of waiting, and
    examples/s.
    """
    launcher = "inline" if workers == 1 else "torchrun"
    directory = folder / "run"
    command = [sys.executable, "-m", "distributed", "model=logistic", *keys]
    command += ["distributed.epochs=1", "distributed.batch_size=256"]
    command += [f"distributed.launcher={launcher}", f"distributed.workers={workers}"]
    command += ["distributed.cpus_per_worker=1", f"hydra.run.dir={directory}"]
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        most = 0
        while process.poll() is None:
            most = max(most, _memory_of_session(process.pid))
            time.sleep(_EVERY)
    if process.returncode:
        raise SystemExit(f"training failed:\n{output.read_text()[-4000:]}")
    events = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    timing = next(event["timing"] for event in events if event["event"] == "train")
    result = json.loads((directory / "result.json").read_text())
    wait = timing["data_ms"] / timing["step_ms"]
    before = result["startup_seconds"]
    return {"most": most, "before": before, "wait": wait, "rate": timing["examples_per_second"]}


def _memory_of_session(session: int) -> int:
    """Return the anonymous and shared memory of the processes of a session together, in bytes."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) == session:
                lines = (entry / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith(_COUNTED))
        except (OSError, ProcessLookupError):  # it has ended
            continue
    return total << 10


if __name__ == "__main__":
    sys.exit(main())
