"""Sweeps of a random number of trials, of which only the best is released: `privacy.selection`.

Papernot and Steinke 2022 (arXiv:2110.03620): who sees the best of K independent trials alone learns
less than from all of them, if K was drawn from a geometric or a Poisson distribution and each trial
is drawn from the same distribution. So each is a combination of the sweep, drawn with replacement,
with a seed of its own; and what is swept over must not change what a trial spends, for what counts
is the worst that could have been drawn.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from heliotrope.errors import ConfigError, writing
from heliotrope.runs.directory import TRIALS
from heliotrope.system.durable import write_whole

__all__ = ["Drawing", "Trials", "basic_sweeper", "drawn_trials"]

_FREE = (
    "optimizer",
    "model",
    "loss",
    "metrics",
    "federated/strategy",
    "federated.strategy",
    "federated.local_epochs",
    "federated.batch_size",
    "federated.lr_schedule",
    "federated.privacy.clip",
    "distributed.privacy.clip",
    "distributed.lr_schedule",
    "distributed.ema_decay",
)
"""What a trial may differ in from others: it spends as much all the same."""


@dataclass(frozen=True)
class Trials:
    """The trials that were drawn for a sweep.

    Parameters
    ----------
    selection, mean
        How their number was drawn, and its expectation.
    jobs
        The overrides of each.
    """

    selection: str
    mean: float
    jobs: tuple[tuple[str, ...], ...]

    @classmethod
    def drawn(
        cls, points: Sequence[Sequence[str]], selection: str, mean: float, run_seed: int | None
    ) -> Trials:
        """Draw trials of these combinations: from a seed, or from the system's own generator."""
        from heliotrope.seeding import numpy_generator, seed  # brings torch, and few runs are drawn

        given = secrets.randbits(63) if run_seed is None else run_seed
        generator = numpy_generator(given, "trials", selection)
        geometric = selection == "geometric"
        count = int(generator.geometric(1 / mean) if geometric else generator.poisson(mean))
        chosen = generator.integers(len(points), size=count).tolist()
        jobs = []
        for trial, point in enumerate(chosen):
            own = seed(given, "trial", trial) % 2**31
            kept = [each for each in points[point] if not each.startswith("seed=")]
            jobs.append((*kept, f"seed={own}"))
        return cls(selection, mean, tuple(jobs))

    @classmethod
    def read(cls, sweep: Path) -> Trials:
        """Return what was drawn for the sweep in a directory."""
        saved = json.loads((sweep / TRIALS).read_text())
        return cls(saved["selection"], saved["mean"], tuple(map(tuple, saved["jobs"])))


class Drawing:
    """Splits a sweep into the trials that are drawn; `trials` are these once they are."""

    def __init__(self, arguments: Sequence[str], split: Any) -> None:
        self._typed = dict(argument.partition("=")[::2] for argument in arguments)
        self._split = split
        self.trials: Trials | None = None

    def __call__(self, overrides: list[Override], _size: int | None) -> list[list[list[str]]]:
        selection, mean = self._typed["privacy.selection"], self._mean()
        _check_swept(overrides)
        (points,) = self._split(overrides, None)
        sweep = Path(self._typed.get("hydra.sweep.dir", ""))
        if self._typed.get("resume") == "true" and (sweep / TRIALS).is_file():
            self.trials = Trials.read(sweep)
            if (self.trials.selection, self.trials.mean) != (selection, mean):
                raise ConfigError(
                    f"{sweep / TRIALS} was drawn with privacy.selection={self.trials.selection} "
                    f"privacy.trials={self.trials.mean:g}. Set these to go on with it."
                )
        else:
            given = self._typed.get("seed")
            number = int(given) if given is not None and given.isdecimal() else None
            self.trials = Trials.drawn(points, selection, mean, number)
        return [[list(job) for job in self.trials.jobs]] if self.trials.jobs else []

    def write(self, sweep: Path) -> None:
        """Leave in the directory of the sweep what was drawn, durably: it is not drawn again."""
        if self.trials is None or (sweep / TRIALS).exists():
            return
        with writing(sweep / TRIALS, "hydra.sweep.dir"):
            write_whole(sweep / TRIALS, json.dumps(asdict(self.trials), indent=1).encode())

    def _mean(self) -> float:
        selection, given = self._typed["privacy.selection"], self._typed.get("privacy.trials", "")
        try:
            mean = float(given)
        except ValueError:
            mean = 0.0
        if selection not in ("geometric", "poisson") or not 1 <= mean < 1e6:
            raise ConfigError(
                f"privacy.selection={selection} privacy.trials={given or 'null'}: the number of "
                "trials is drawn from a distribution, geometric or poisson, with an expectation "
                "of at least 1. Set both, such as privacy.selection=geometric privacy.trials=10."
            )
        return mean


@contextmanager
def drawn_trials(arguments: Sequence[str]) -> Iterator[Drawing | None]:
    """Let a sweep inside the block be one of drawn trials, if `arguments` ask for it."""
    sweeping = {"-m", "--multirun"} & set(arguments)
    if not (sweeping and any(each.startswith("privacy.selection=") for each in arguments)):
        yield None
        return
    # Hydra takes sweepers of its own package alone, and this is all that another would do.
    basic = basic_sweeper()
    before = basic.split_arguments
    drawing = Drawing(arguments, before)
    basic.split_arguments = staticmethod(drawing)
    try:
        yield drawing
    finally:
        basic.split_arguments = staticmethod(before)


def basic_sweeper() -> Any:
    """Return the class of Hydra's own sweeper: not what import gives, for Hydra loads its own."""
    found = Plugins.instance().discover(Sweeper)
    return next(each for each in found if each.__name__ == "BasicSweeper")


def _check_swept(overrides: Sequence[Override]) -> None:
    for override in overrides:
        key = override.get_key_element().lstrip("+~")
        free = any(key == each or key.startswith((f"{each}.", f"{each}@")) for each in _FREE)
        if override.is_sweep_override() and not free:
            raise ConfigError(
                f"{override.input_line}: with privacy.selection, trials must not differ in what "
                f"they spend, and have seeds of their own. Sweep over keys of {', '.join(_FREE)}."
            )
