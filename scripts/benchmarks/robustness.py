"""Simulated attacks against robust strategies: test accuracy, rule by rule and attack by attack.

    python scripts/benchmarks/robustness.py --output robustness.json --plot robustness.svg

25 clients of which 5 attack, all in every round, one step each on all their examples at rate 0.2,
client momentum 0.9. digits: an MLP 64-32-10, 400 rounds, 3 seeds. mnist: an MLP 784-64-10 on a
tenth of the training examples (6,000), 60 rounds, 1 seed. With `--partition sorted` each client
has one shard of the examples sorted by label. A run that diverges guesses: one class of ten.

Each run is written to `--output` as it ends, and is not done again where the file has it with the
same settings; `--seconds` stops after the run in which they are over. Without any of them the
command does all, which takes more than an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import record
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.table import Table

from heliotrope import config
from heliotrope.errors import RunFailedError
from heliotrope.modes import mode_module

_CLIENTS, _ATTACKERS, _GUESSED = 25, 5, 0.1
_SETTING = (
    *("model=mlp", "optimizer=sgd", "optimizer.lr=0.2", "federated.batch_size=null"),
    *(f"federated.partition.clients={_CLIENTS}", f"federated.clients_per_round={_CLIENTS}"),
    *("federated.client_momentum=0.9", "federated.client_training=batched"),
)
_DATA = {
    "digits": ("data=digits", "data.validation_fraction=0", "model.hidden=[32]"),
    "mnist": ("data=mnist", "data.validation_fraction=0.9", "model.hidden=[64]"),
}
_ROUNDS, _SEEDS = {"digits": 400, "mnist": 60}, {"digits": 3, "mnist": 1}
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
    "Bulyan": ("federated/strategy=bulyan", _BAD),
    "geometric median": ("federated/strategy=geometric_median",),
    # A radius of 0.5 for gradients; updates are those times the rate.
    "centred clipping": ("federated/strategy=centered_clipping", "federated.strategy.tau=0.1"),
    "norm bounding": ("federated/strategy=norm_bounding", "federated.strategy.bound=0.1"),
    "FLTrust": ("federated/strategy=fltrust",),
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
    # Half of the attackers' examples have a white square and label 0, and five attackers of 25 that
    # send five times what they learned replace a mean (Bagdasaryan et al. 2020).
    "backdoor": (
        *("federated/attack=backdoor", "federated.attack.size=2", "federated.attack.boost=5"),
        _ATTACKED,
    ),
}
# Test accuracy in percent of an independent implementation, on digits, three seeds. What it calls
# sign flip sends the negative of the honest mean.
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
    """A rule under an attack: what runs of some seeds came to; those that diverged guess."""

    data: str
    partition: str
    rule: str
    attack: str
    runs: Sequence[Mapping[str, Any]]

    @property
    def percent(self) -> float:
        """Test accuracy, the mean over seeds."""
        return 100 * mean(_GUESSED if r["diverged"] else r["accuracy"] for r in self.runs)

    @property
    def success(self) -> float | None:
        """Percent of stamped test examples that are taken for the target; None without any."""
        found = [r["success"] for r in self.runs if r.get("success") is not None]
        return 100 * mean(found) if found else None

    @property
    def reference(self) -> float | None:
        """Percent of the reference, where there is one."""
        if self.data != "digits":
            return None
        return _REFERENCE[self.partition].get((self.rule, self.attack))

    def text(self) -> str:
        """Return what the table says."""
        reference = "" if self.reference is None else f" ({self.reference})"
        success = "" if self.success is None else f" / {self.success:.0f}"
        return f"{self.percent:.1f}{success}{reference}"


class Runs:
    """Runs that are done, in a file that is written after each."""

    def __init__(self, path: Path | None, said: Mapping[str, Any]) -> None:
        self._path, self._said = path, said
        self._done: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self._done = json.loads(path.read_text())["runs"]

    def get(self, settings: Sequence[str]) -> dict[str, Any] | None:
        """Return the run with these settings, if it is done."""
        return self._done.get(" ".join(settings))

    def put(self, settings: Sequence[str], run: dict[str, Any]) -> None:
        """Keep a run."""
        self._done[" ".join(settings)] = run
        if self._path is not None:
            beside = self._path.with_suffix(".part")
            beside.write_text(json.dumps({**self._said, "runs": self._done}, indent=1) + "\n")
            beside.replace(self._path)


def main() -> int:
    """Train what is not done yet; print tables and plot them."""
    options = _options()
    console = record.console()
    runs, started = Runs(options.output, record.begin()), time.monotonic()
    cells, left = [], 0
    config.register()
    with initialize_config_dir(config_dir=str(config.conf_dir()), version_base="1.3"):
        for where in _wanted(options):
            found = []
            for settings in _settings(*where, options):
                run = runs.get(settings)
                if run is None and time.monotonic() - started < options.seconds:
                    run = _trained(settings)
                    runs.put(settings, run)
                    told = "diverged" if run["diverged"] else f"{100 * run['accuracy']:.1f}"
                    seed = settings[-1]
                    console.print(f"{', '.join(where)}, {seed}: {told}, {run['seconds']:.0f} s")
                if run is None:
                    left += 1
                else:
                    found.append(run)
            if found:
                cells.append(Cell(*where, found))
    for data in options.data:
        for partition in options.partition:
            console.print(_table([c for c in cells if (c.data, c.partition) == (data, partition)]))
    console.print(f"{left} runs are left" if left else "all runs are done")
    if options.plot:
        _plot(cells, options.plot)
    return 0


def _options() -> argparse.Namespace:
    parser = record.parser(__doc__)
    parser.add_argument("--data", type=record.names(_DATA), default=list(_DATA))
    parser.add_argument("--partition", type=record.names(_PARTITIONS), default=list(_PARTITIONS))
    parser.add_argument("--rules", type=record.names(_RULES), default=list(_RULES))
    parser.add_argument("--attacks", type=record.names(_ATTACKS), default=list(_ATTACKS))
    parser.add_argument("--seeds", type=int, help="instead of the number that each data has")
    parser.add_argument("--rounds", type=int, help="instead of the number that each data has")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="to begin runs in")
    parser.add_argument("--plot", type=Path, help="SVG file")
    return parser.parse_args()


def _wanted(options: argparse.Namespace) -> Iterator[tuple[str, str, str, str]]:
    for data in options.data:
        for partition in options.partition:
            for rule in options.rules:
                for attack in options.attacks:
                    yield data, partition, rule, attack


def _settings(
    data: str, partition: str, rule: str, attack: str, options: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    """Yield what configures a run of each seed; the seed is the last of it."""
    rounds = options.rounds or _ROUNDS[data]
    for seed in range(options.seeds or _SEEDS[data]):
        yield (
            *(*_DATA[data], *_SETTING, *_PARTITIONS[partition], *_RULES[rule], *_ATTACKS[attack]),
            *(f"federated.{key}={rounds}" for key in ("rounds", "evaluate_every")),
            *(f"federated.checkpoint_every={rounds}", f"seed={seed}"),
        )


def _trained(settings: Sequence[str]) -> dict[str, Any]:
    """Return what a run came to."""
    *same, seed = settings
    run = replace(_composed(tuple(same)), seed=int(seed.removeprefix("seed=")))
    started = time.time()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        directory = Path(folder) / "run"
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                mode_module("federated", "job").run_job(run, directory)
        except RunFailedError as error:
            if "NaN or infinite" not in str(error):
                raise
            return {"diverged": True, "seconds": round(time.time() - started, 1)}
        result = json.loads((directory / "result.json").read_text())
    return {
        "diverged": False,
        "accuracy": result["metrics"]["test/accuracy"],
        "success": result["metrics"].get("attack/success"),
        "seconds": round(time.time() - started, 1),
    }


@cache
def _composed(settings: tuple[str, ...]) -> config.Run:
    return config.load(compose("config", overrides=list(settings)), "federated")


def _table(cells: Sequence[Cell]) -> Table:
    if not cells:
        return Table(title="nothing is done yet")
    first = cells[0]
    table = Table(title=f"{first.data}, {first.partition}: percent (reference)")
    table.add_column("")
    attacks = list(dict.fromkeys(cell.attack for cell in cells))
    for attack in attacks:
        table.add_column(attack, justify="right")
    for rule in dict.fromkeys(cell.rule for cell in cells):
        row = {cell.attack: cell.text() for cell in cells if cell.rule == rule}
        table.add_row(rule, *(row.get(attack, "") for attack in attacks))
    return table


def _plot(cells: Sequence[Cell], path: Path) -> None:
    panels = list(dict.fromkeys((cell.data, cell.partition) for cell in cells))
    figure = Figure(figsize=(10, 2.6 * len(panels) + 0.6), layout="constrained")
    colours = {rule: f"C{number}" for number, rule in enumerate(_RULES)}
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        mine = [cell for cell in cells if (cell.data, cell.partition) == panel]
        attacks = list(dict.fromkeys(cell.attack for cell in mine))
        rules = list(dict.fromkeys(cell.rule for cell in mine))
        width = 0.8 / len(rules)
        for cell in mine:
            place = attacks.index(cell.attack) + (rules.index(cell.rule) + 0.5) * width - 0.4
            axis.bar(place, cell.percent, width, color=colours[cell.rule])
            if cell.reference is not None:
                axis.plot([place], [cell.reference], "k_", markersize=8)
            if cell.success is not None:
                axis.plot([place], [cell.success], "rx", markersize=5)
        axis.set_xticks(range(len(attacks)), attacks)
        axis.set(title=", ".join(panel), ylabel="test accuracy, %", ylim=(0, 100))
    shown = [rule for rule in _RULES if any(cell.rule == rule for cell in cells)]
    handles = [Patch(color=colours[rule], label=rule) for rule in shown]
    figure.legend(
        handles=handles,
        title="a black dash: the reference; a red cross: the backdoor's success",
        ncols=(len(shown) + 1) // 2,
        fontsize="small",
        loc="outside lower center",
    )
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
