"""Simulated attacks against robust strategies: test accuracy on digits, attack by attack.

    python scripts/benchmarks/robustness.py --output robustness.json --plot robustness.svg

An MLP 64-32-10, 25 clients of which 5 attack, all in every round, one step each on all their
examples at rate 0.2, client momentum 0.9, 400 rounds. With `--partition sorted` each client has one
shard of the examples sorted by label. A run that diverges guesses: one class of ten.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import record
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.table import Table

_ROOT = Path(__file__).resolve().parents[2]
_CLIENTS, _ATTACKERS, _GUESSED = 25, 5, 0.1
_SETTING = (
    *("data=digits", "data.validation_fraction=0", "model=mlp", "model.hidden=[32]"),
    *("optimizer=sgd", "optimizer.lr=0.2", "federated.batch_size=null"),
    *(f"federated.partition.clients={_CLIENTS}", f"federated.clients_per_round={_CLIENTS}"),
    *("federated.client_momentum=0.9", "federated.client_training=batched"),
)
_PARTITIONS = {
    "iid": ("federated/partition=iid",),
    "sorted": ("federated/partition=shards", "federated.partition.shards_per_client=1"),
}
_BAD = f"federated.strategy.num_malicious_nodes={_ATTACKERS}"
_RULES: Mapping[str, Sequence[str]] = {
    "mean": ("federated/strategy=fedavg",),
    "trimmed mean": ("federated/strategy=fedtrimmedavg", "federated.strategy.beta=0.2"),
    "median": ("federated/strategy=fedmedian",),
    "Krum": ("federated/strategy=krum", _BAD),
    "MultiKrum": (
        *("federated/strategy=multikrum", _BAD),
        f"federated.strategy.num_nodes_to_select={_CLIENTS - _ATTACKERS}",
    ),
    "geometric median": ("federated/strategy=geometric_median",),
    # A radius of 0.5 for gradients; updates are those times the rate.
    "centred clipping": ("federated/strategy=centered_clipping", "federated.strategy.tau=0.1"),
    "norm bounding": ("federated/strategy=norm_bounding", "federated.strategy.bound=0.1"),
}
_ATTACKED = f"federated.attack.attackers={_ATTACKERS}"
_ATTACKS: Mapping[str, Sequence[str]] = {
    "none": ("federated/attack=none",),
    "scaling": ("federated/attack=scaling", _ATTACKED),
    "negative mean": ("federated/attack=ipm", "federated.attack.tau=1", _ATTACKED),
    # The reference adds deviations to gradients, which updates go against.
    "alie": ("federated/attack=alie", "federated.attack.tau=-1.5", _ATTACKED),
    **{
        name: (f"federated/attack={name}", _ATTACKED)
        for name in ("sign_flip", "label_flip", "mimic")
    },
}
# Test accuracy in percent of an independent implementation, three seeds. What it calls sign flip
# sends the negative of the honest mean.
_REFERENCE: Mapping[str, Mapping[tuple[str, str], float]] = {
    "iid": {
        ("mean", "scaling"): 10.5,
        ("trimmed mean", "scaling"): 93.2,
        ("median", "scaling"): 93.7,
        ("MultiKrum", "scaling"): 96.0,
        ("geometric median", "scaling"): 94.6,
    },
    "sorted": {
        (rule, attack): value
        for rule, values in {
            "mean": (95.9, 95.4, 75.6, 10.5),
            "MultiKrum": (79.8, 13.1, 55.1, 95.6),
            "geometric median": (93.1, 54.1, 78.2, 56.1),
            "centred clipping": (94.2, 60.3, 69.9, 67.3),
        }.items()
        for attack, value in zip(("none", "negative mean", "alie", "scaling"), values, strict=True)
    },
}


@dataclass(frozen=True)
class Cell:
    """Test accuracy of a rule under an attack, a seed each; `diverged` of them guess."""

    partition: str
    rule: str
    attack: str
    accuracies: list[float]
    diverged: int

    @property
    def percent(self) -> float:
        """The mean over seeds."""
        return 100 * mean(self.accuracies)

    @property
    def reference(self) -> float | None:
        """Percent of the reference, where there is one."""
        return _REFERENCE[self.partition].get((self.rule, self.attack))


def main() -> int:
    """Train, print tables, and store and plot them."""
    options = _options()
    console = record.console()
    said = record.begin() | {"setting": _SETTING, "rounds": options.rounds, "seeds": options.seeds}
    cells = []
    for partition in options.partition:
        for rule in options.rules:
            for attack in options.attacks:
                cells.append(_cell(partition, rule, attack, options))
                console.print(_said(cells[-1]), style="dim")
        console.print(_table([cell for cell in cells if cell.partition == partition], options))
    said["cells"] = [{**asdict(cell), "reference": cell.reference} for cell in cells]
    record.finish(said, options.output)
    if options.plot:
        _plot(cells, options.plot)
    return 0


def _options() -> argparse.Namespace:
    parser = record.parser(__doc__)
    parser.add_argument("--partition", type=record.names(_PARTITIONS), default=list(_PARTITIONS))
    parser.add_argument("--rules", type=record.names(_RULES), default=list(_RULES))
    parser.add_argument("--attacks", type=record.names(_ATTACKS), default=list(_ATTACKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--plot", type=Path, help="SVG file")
    return parser.parse_args()


def _cell(partition: str, rule: str, attack: str, options: argparse.Namespace) -> Cell:
    found = [_accuracy(partition, rule, attack, s, options.rounds) for s in range(options.seeds)]
    accuracies = [_GUESSED if value is None else value for value in found]
    return Cell(partition, rule, attack, accuracies, found.count(None))


def _accuracy(partition: str, rule: str, attack: str, seed: int, rounds: int) -> float | None:
    """Return the test accuracy of one run; None if it diverged."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "federated", *_SETTING, *_PARTITIONS[partition]),
            *(*_RULES[rule], *_ATTACKS[attack], f"seed={seed}"),
            *(f"federated.{key}={rounds}" for key in ("rounds", "evaluate_every")),
            *(f"federated.checkpoint_every={rounds}", f"hydra.run.dir={folder}/run"),
        ]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 1 and "NaN or infinite" in done.stderr:
            return None
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
        result = json.loads((Path(folder) / "run" / "result.json").read_text())
    accuracy: float = result["metrics"]["test/accuracy"]
    return accuracy


def _said(cell: Cell) -> str:
    spread = ", ".join(f"{100 * value:.1f}" for value in cell.accuracies)
    diverged = f", {cell.diverged} diverged" if cell.diverged else ""
    return f"{cell.partition}, {cell.rule}, {cell.attack}: {cell.percent:.1f} ({spread}{diverged})"


def _table(cells: Sequence[Cell], options: argparse.Namespace) -> Table:
    table = Table(title=f"{cells[0].partition}: test accuracy in percent (reference)")
    table.add_column("")
    for attack in options.attacks:
        table.add_column(attack, justify="right")
    for rule in options.rules:
        row = [cell for cell in cells if cell.rule == rule]
        table.add_row(
            rule,
            *(
                f"{cell.percent:.1f}" + ("" if cell.reference is None else f" ({cell.reference})")
                for cell in row
            ),
        )
    return table


def _plot(cells: Sequence[Cell], path: Path) -> None:
    partitions = list(dict.fromkeys(cell.partition for cell in cells))
    figure = Figure(figsize=(9, 3 * len(partitions)), layout="constrained")
    colours = {rule: f"C{number}" for number, rule in enumerate(_RULES)}
    for axis, partition in zip(
        figure.subplots(len(partitions), squeeze=False)[:, 0], partitions, strict=True
    ):
        mine = [cell for cell in cells if cell.partition == partition]
        attacks = list(dict.fromkeys(cell.attack for cell in mine))
        rules = list(dict.fromkeys(cell.rule for cell in mine))
        width = 0.8 / len(rules)
        for cell in mine:
            place = attacks.index(cell.attack) + (rules.index(cell.rule) + 0.5) * width - 0.4
            axis.bar(place, cell.percent, width, color=colours[cell.rule])
            if cell.reference is not None:
                axis.plot([place], [cell.reference], "k_", markersize=10)
        axis.set_xticks(range(len(attacks)), attacks)
        axis.set(title=partition, ylabel="test accuracy, %", ylim=(0, 100))
    shown = [rule for rule in _RULES if any(cell.rule == rule for cell in cells)]
    handles = [Patch(color=colours[rule], label=rule) for rule in shown]
    title = "a black dash: the reference"
    figure.legend(
        handles=handles, title=title, ncols=len(shown), fontsize="small", loc="outside lower center"
    )
    figure.savefig(path)


if __name__ == "__main__":
    raise SystemExit(main())
