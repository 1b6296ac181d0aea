"""Test accuracy against epsilon, in studies that others have published, and one of our own.

    python scripts/benchmarks/privacy.py --output privacy.json --plot privacy.svg

`dpsgd`: DP-SGD on MNIST with the noise, rates and epochs of Opacus' example. `fashion`: clients of
Fashion-MNIST, protected as a whole. `geyer`: the clients of Geyer et al. 2017 on MNIST, epsilon 8.

Each cell is a run in a process of its own, of one thread. What stands in `--output` already is not
run again; a run that was cut off goes on (`--runs`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import record
from matplotlib.figure import Figure
from rich.table import Table

_ROOT = Path(__file__).resolve().parents[2]
_PLUGIN = Path(__file__).resolve().parent / "plugins" / "sample_convnet.py"
_ALL = ("data.fit=none", "data.validation_fraction=0", "optimizer=sgd")


@dataclass(frozen=True)
class Cell:
    """A run of a study, whose seeds are averaged.

    Parameters
    ----------
    series
        Cells that a line of the plot joins.
    label
        Of the row.
    arguments
        Mode and overrides.
    published
        Test accuracy in percent and epsilon, as they are printed elsewhere; None: there is none.
    """

    study: str
    series: str
    label: str
    arguments: Sequence[str]
    published: tuple[float, float | None] | None = None


def _dpsgd() -> list[Cell]:
    """DP-SGD, one example in 250 a step: 240 of MNIST's 60,000."""
    setting = (
        *("distributed", *_ALL, "data=mnist", f"plugins=[{_PLUGIN}]", "model=SampleConvNet"),
        *("distributed.launcher=inline", "distributed.workers=1", "distributed.batch_size=240"),
    )
    cells = [
        Cell(
            *("dpsgd", "DP-SGD", f"noise {noise}, {epochs} epochs"),
            (
                *(*setting, f"optimizer.lr={rate}", f"distributed.epochs={epochs}"),
                *("distributed/privacy=dpsgd", f"distributed.privacy.clip={clip}"),
                f"distributed.privacy.noise_multiplier={noise}",
                "distributed.privacy.delta=1e-5",
            ),
            published,
        )
        for noise, epochs, rate, clip, published in (
            (1.3, 15, 0.25, 1.5, (94.63, 1.16)),
            (1.1, 60, 0.15, 1.0, (96.78, 2.91)),
            (0.7, 45, 0.25, 1.5, (97.09, 6.86)),
        )
    ]
    plain = (*setting, "optimizer.lr=0.1", "distributed.epochs=20")
    return [*cells, Cell("dpsgd", "without", "no privacy, 20 epochs", plain, (98.94, None))]


def _clients(clients: int, cohort: int, rounds: int, *keys: str) -> tuple[str, ...]:
    return (
        *("federated", *_ALL, "model=mlp", "federated.batch_size=10"),
        *("federated.local_epochs=5", "optimizer.lr=0.1"),
        *(f"federated.partition.clients={clients}", f"federated.clients_per_round={cohort}"),
        *(f"federated.{key}={rounds}" for key in ("rounds", "evaluate_every")),
        *keys,
    )


def _fashion() -> list[Cell]:
    """MLP 784-32-10, iid clients, a tenth of them each round."""
    cells = []
    for clients in (1000, 10_000):
        keys = ("data=fashion_mnist", "model.hidden=[32]", "federated/partition=iid")
        setting = _clients(clients, clients // 10, 100, *keys)
        series = f"{clients:,} clients"
        cells.append(Cell("fashion", f"{series}, without", f"{series}, no privacy", setting))
        for epsilon in (0.5, 1, 2, 4, 8):
            private = (
                *("federated/privacy=central", "federated.privacy.clip=0.5"),
                f"federated.privacy.target_epsilon={epsilon}",
            )
            label = f"{series}, epsilon {epsilon}"
            cells.append(Cell("fashion", series, label, (*setting, *private)))
    return cells


def _geyer() -> list[Cell]:
    """MNIST sorted by label, two shards a client; cohorts and rounds as published."""
    cells = []
    for clients, cohort, rounds, delta, hidden, clip, accuracy in (
        (100, 50, 11, 1e-3, "[]", 1.0, 78),
        (1000, 220, 54, 1e-5, "[32]", 1.0, 92),
        (10_000, 508, 412, 1e-6, "[32]", 0.5, 96),
    ):
        keys = ("data=mnist", f"model.hidden={hidden}", "federated/partition=shards")
        setting = _clients(clients, cohort, rounds, *keys)
        private = (
            *("federated/privacy=central", f"federated.privacy.clip={clip}"),
            *("federated.privacy.target_epsilon=8", f"federated.privacy.delta={delta}"),
        )
        label = f"{clients:,} clients, {rounds} rounds"
        cells.append(Cell("geyer", "K", label, (*setting, *private), (accuracy, 8)))
        cells.append(Cell("geyer", "without", f"{label}, no privacy", setting))
    return cells


_STUDIES: Mapping[str, Callable[[], list[Cell]]] = {
    "dpsgd": _dpsgd,
    "fashion": _fashion,
    "geyer": _geyer,
}


def main() -> int:
    """Train what is not in the output yet, print tables, and plot."""
    options = _options()
    console = record.console()
    said: dict[str, Any] = record.begin() | {"results": {}}
    if options.output and options.output.exists():
        said["results"] = json.loads(options.output.read_text())["results"]
    studies = _chosen(options)
    for cells in studies.values():
        for cell in cells:
            for seed in range(options.seeds):
                key = f"{cell.label} [{cell.study}], seed {seed}"
                if key not in said["results"]:
                    said["results"][key] = _result(cell, seed, options.runs)
                    accuracy, epsilon = (said["results"][key][k] for k in ("accuracy", "epsilon"))
                    console.print(f"{key}: accuracy {accuracy:.4f}, epsilon {epsilon}", style="dim")
                    if options.output:
                        options.output.write_text(json.dumps(said, indent=2) + "\n")
        console.print(_table(cells, _found(cells, said["results"], options.seeds)))
    record.finish(said, options.output)
    if options.plot:
        _plot(studies, said["results"], options.seeds, options.plot)
    return 0


def _options() -> argparse.Namespace:
    parser = record.parser(__doc__)
    parser.add_argument("--studies", type=record.names(_STUDIES), default=list(_STUDIES))
    parser.add_argument("--cells", default="", help="only those whose label has this in it")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=_ROOT / "runs" / "privacy-benchmark")
    parser.add_argument("--plot", type=Path, help="SVG file")
    return parser.parse_args()


def _chosen(options: argparse.Namespace) -> dict[str, list[Cell]]:
    """Return the cells that are asked for, by study."""
    return {
        study: chosen
        for study in options.studies
        if (chosen := [cell for cell in _STUDIES[study]() if options.cells in cell.label])
    }


def _result(cell: Cell, seed: int, runs: Path) -> dict[str, Any]:
    """Run a cell, or go on with its run, and return what is kept of its result."""
    name = f"{cell.study}-{cell.label}-{seed}".replace(" ", "-").replace(",", "")
    folder = runs / name
    mode, *overrides = cell.arguments
    command = [
        *(sys.executable, "-m", mode, *overrides, f"seed={seed}"),
        *(f"hydra.run.dir={folder}", "resume=true"),
    ]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    result = json.loads((folder / "result.json").read_text())
    privacy = result["privacy"] or {"epsilon": None, "epsilon_rdp": None, "delta": None}
    return {
        "command": command[1:],
        "accuracy": result["metrics"]["test/accuracy"],
        **{key: privacy[key] for key in ("epsilon", "epsilon_rdp", "delta")},
        "noise_multiplier": privacy.get("noise_multiplier"),
        "train_seconds": result["train_seconds"],
    }


def _found(
    cells: Sequence[Cell], results: Mapping[str, Any], seeds: int
) -> dict[Cell, list[Mapping[str, Any]]]:
    """Return what is known of each cell, a result a seed."""
    keys = {
        cell: [f"{cell.label} [{cell.study}], seed {seed}" for seed in range(seeds)]
        for cell in cells
    }
    return {cell: [results[key] for key in mine] for cell, mine in keys.items()}


def _table(cells: Sequence[Cell], found: Mapping[Cell, Sequence[Mapping[str, Any]]]) -> Table:
    table = Table(title=f"{cells[0].study}: test accuracy, %", title_justify="left")
    for column in ("", "accuracy", "published", "epsilon (PLD)", "RDP", "printed", "delta"):
        table.add_column(column, justify="right" if column else "left")
    for cell in cells:
        first, *_ = found[cell]
        accuracies = [100 * result["accuracy"] for result in found[cell]]
        spread = f" ({min(accuracies):.1f} to {max(accuracies):.1f})" if len(accuracies) > 1 else ""
        published, printed = cell.published or (None, None)
        table.add_row(
            *(cell.label, f"{mean(accuracies):.2f}{spread}", _number(published, ".2f")),
            *(_number(first["epsilon"], ".2f"), _number(first["epsilon_rdp"], ".2f")),
            *(_number(printed, ".2f"), _number(first["delta"], ".2g")),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _plot(
    studies: Mapping[str, Sequence[Cell]], results: Mapping[str, Any], seeds: int, path: Path
) -> None:
    figure = Figure(figsize=(4.2 * len(studies), 3.6), layout="constrained")
    panels = figure.subplots(1, len(studies), squeeze=False)[0]
    for axis, (study, cells) in zip(panels, studies.items(), strict=True):
        found = _found(cells, results, seeds)
        series: dict[str, list[tuple[float, float]]] = {}
        for cell, mine in found.items():
            accuracy = 100 * mean(result["accuracy"] for result in mine)
            epsilon = mine[0]["epsilon"]
            if epsilon is None:
                axis.axhline(accuracy, color="0.6", linestyle=":")
                continue
            # Of one epsilon there are several sizes: they are told apart side by side.
            x = float(len(series.get(cell.series, ()))) if study == "geyer" else epsilon
            series.setdefault(cell.series, []).append((x, accuracy))
            if cell.published is not None:
                axis.plot([x], [cell.published[0]], "k_", markersize=14)
        for name, points in series.items():
            axis.plot(*zip(*sorted(points), strict=True), "o-", label=name)
        axis.set(title=study, ylabel="test accuracy, %")
        if study == "geyer":
            labels = [cell.label for cell in found if cell.series == "K"]
            axis.set_xticks(range(len(labels)), labels, fontsize="x-small")
        else:
            axis.set(xscale="log", xlabel="epsilon (PLD)")
            axis.legend(fontsize="small")
    figure.supxlabel("dotted: without privacy; a black dash: published", fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    raise SystemExit(main())
