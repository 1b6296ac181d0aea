"""How long training stands still for a checkpoint of 10 M parameters, beside writing it at once.

    python scripts/benchmarks/checkpoint_stall.py --threads 1 --output stall.json

A perceptron with Adam, so that a checkpoint has 120 MB. In turn, for 20 steps: no checkpoints, ours
beside training, and the same files written before training goes on. A stall is the time in the call
and what the step after it took more than a step without checkpoints; `all steps` says what every
step took more, the processor's share for hashing and writing included.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import record
import torch
from heliotrope.distributed.loop.saver import Saver  # installed: this folder is not the checkout's
from rich.table import Table
from running import wait_until_idle
from torch.nn import functional

from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.events import Tracker
from heliotrope.training import optimizer_state

_WIDTH = 2816
_BETWEEN = 20  # steps after a checkpoint
_WARM_UP = 5  # steps after the way before, which do not count


class _Training:
    def __init__(self, batch_size: int) -> None:
        layers = [torch.nn.Linear(784, _WIDTH), torch.nn.ReLU()]
        layers += [torch.nn.Linear(_WIDTH, _WIDTH), torch.nn.ReLU(), torch.nn.Linear(_WIDTH, 10)]
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self._inputs = torch.randn(batch_size, 784)
        self._targets = torch.randint(10, (batch_size,))

    def step(self) -> None:
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(self._inputs), self._targets).backward()
        self.optimizer.step()

    def present(self, progress: int) -> Checkpoint:
        arrays, rest = optimizer_state.flatten(self.optimizer)
        return Checkpoint(progress, self.model.state_dict(), arrays, {"optimizer": rest})


def main() -> int:
    """Measure, print a table, and store it."""
    parser = record.parser(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--checkpoints", type=int, default=10, help="the first does not count")
    options = parser.parse_args()
    wait_until_idle(options.patience)
    said = record.begin()
    torch.set_num_threads(options.threads)
    training = _Training(options.batch_size)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        beside, at_once = Path(folder) / "beside", Path(folder) / "at_once"
        tracker = Tracker(Path(folder) / "metrics.jsonl")
        saver = Saver(beside, training.optimizer, tracker, keep_last=2)
        ways: dict[str, Callable[[int], object]] = {
            "none": lambda _: None,
            "beside training": lambda number: saver.save(training.present(number), ()),
            "at once": lambda number: checkpoint.save(at_once, training.present(number), 2),
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        with saver:
            for number in range(options.checkpoints):
                for name, way in ways.items():
                    times = _measure(training, way, number)
                    measured[name] += times if number else []
        tracker.close()
    plain = median(took for _, took in measured["none"])
    parameters = sum(p.numel() for p in training.model.parameters())
    said |= {
        "options": {name: str(value) for name, value in vars(options).items()},
        "parameters": parameters,
        "step_seconds": plain,
        "seconds": measured,  # of each step: in the call before it, and in the step itself
    }
    record.console().print(_table(measured, plain, f"{parameters:,} parameters, Adam"))
    record.finish(said, options.output)
    return 0


def _measure(
    training: _Training, save: Callable[[int], object], number: int
) -> list[tuple[float, float]]:
    """Return the seconds of each step: in the call before it (0 if none), and in the step."""
    for _ in range(_WARM_UP):
        training.step()
    times = []
    for step in range(_BETWEEN):
        started = time.perf_counter()
        if step == 0:
            save(number)
        called = time.perf_counter()
        training.step()
        times.append((called - started, time.perf_counter() - called))
    return times


def _table(measured: dict[str, list[tuple[float, float]]], plain: float, title: str) -> Table:
    table = Table(title=f"{title}: a step takes {1e3 * plain:.1f} ms", title_justify="left")
    for column in ("checkpoints", "call", "next step", "stall / step", "all steps"):
        table.add_column(column, justify="right")
    for name, times in measured.items():
        call = median(called for called, _ in times[::_BETWEEN])
        after = median(took for _, took in times[::_BETWEEN]) - plain
        every = mean(map(sum, times)) - plain
        table.add_row(
            name,
            f"{1e3 * call:.2f} ms",
            f"{1e3 * after:+.2f} ms",
            f"{100 * (call + after) / plain:.1f} %",
            f"{100 * every / plain:+.1f} %",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
