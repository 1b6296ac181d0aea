"""A search: a sweep (`-m`) whose jobs are proposed one by one, from what those before have reached.

Hydra composes and launches each trial as a job of the sweep, so that everything of a sweep holds:
directories, plug-ins, ledgers, table and report. What is proposed is in `heliotrope.search`.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from heliotrope import config
from heliotrope.commands.directories import is_generated, refuse_unnamed
from heliotrope.commands.output import say
from heliotrope.commands.trials import basic_sweeper
from heliotrope.config import Mode, Run, SearchConfig
from heliotrope.config.redaction import without_passwords
from heliotrope.errors import ConfigError, RunDirectoryError
from heliotrope.report import read_run
from heliotrope.report.frontier import searched_by
from heliotrope.report.units import metric_text
from heliotrope.runs.directory import MAY_CHANGE, RunDirectory, flat
from heliotrope.search.journal import Journal
from heliotrope.search.queue import TrialQueue
from heliotrope.search.space import Dimension, dimension_of
from heliotrope.search.study import judged_by, refuse_without_optuna
from heliotrope.search.trials import Ended, Trial
from heliotrope.system.redaction import masked

__all__ = ["Search", "searching"]

_NUMBERED = "${hydra.job.num}"  # hydra.sweep.subdir, as conf/config.yaml has it
# Of what a run may change when it goes on: what makes its trials no longer comparable.
_MUST_STAY = ("epochs", "rounds", "lr_horizon", "early_stopping", "target")


@contextmanager
def searching(mode: Mode, begin: Callable[[Search], None]) -> Iterator[None]:
    """Let a sweep inside the block be a search, if its configuration says so; `begin` is told."""
    basic = basic_sweeper()
    before = basic.sweep

    def sweep(sweeper: Any, arguments: list[str]) -> Any:
        words = [f"{key}={value}" for key, value in sweeper.params.items()] + arguments
        parser = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader)
        overrides = parser.parse_overrides(words)
        if sweeper.config.search is None or sweeper.config.search.trials is None:
            _refuse_intervals(overrides)
            return before(sweeper, arguments)
        search = Search(mode, sweeper, overrides)
        search.run(begin)
        return None

    basic.sweep = sweep
    try:
        yield
    finally:
        basic.sweep = before


class Search:
    """The trials of a search: those that an earlier command has begun, and those that are new.

    Parameters
    ----------
    mode
        Of each trial.
    sweeper
        Hydra's: it has the configuration, and launches jobs.
    overrides
        All that the sweep was given; the last of a key counts.

    Raises
    ------
    ConfigError
        Before any trial, if there is anything to say against all of them.
    """

    def __init__(self, mode: Mode, sweeper: Any, overrides: Sequence[Override]) -> None:
        self._mode, self._sweeper = mode, sweeper
        self._cfg = cast(SearchConfig, OmegaConf.to_object(sweeper.config.search))
        last = {override.get_key_element(): override for override in overrides}
        self._fixed = [str(o.input_line) for o in last.values() if not o.is_sweep_override()]
        self._swept = {key: o for key, o in last.items() if o.is_sweep_override()}
        self._refuse()
        self._space = {key: dimension_of(o) for key, o in self._swept.items()}
        self._settings = _settings(mode, self._cfg, self._space, self._checked())
        self._directory = Path(sweeper.config.hydra.sweep.dir).absolute()
        self._journal = Journal(self._directory)
        self._queue = TrialQueue(self._journal, self._space, self._cfg)
        self._refused = False

    @property
    def directory(self) -> Path:
        """Where the search is, with a directory for each trial."""
        return self._directory

    def run(self, begin: Callable[[Search], None]) -> None:
        """Run the trials that have not ended, and as many more as are wanted.

        `begin` is told of a search that is not refused, before its trials.
        """
        with closing(self._journal):
            self._settle()
            begin(self)
            self._run()

    def _run(self) -> None:
        OmegaConf.save(self._sweeper.config, self._directory / "multirun.yaml")
        done = sum(trial.ended is not None for trial in self._journal.trials)
        before = f", of which {done} have ended" if done else ""
        say(f"search: {self._cfg.trials} trials of {', '.join(self._space)}{before}")
        while not self._refused and (trial := self._queue.next()) is not None:
            if trial.rule is not None:
                trial.rule.write(self._directory / str(trial.number))
            values = {key: str(value) for key, value in trial.values.items()}
            self._sweeper.launcher.launch([self._overrides(values)], initial_job_idx=trial.number)

    def ended(self, directory: Path, code: int) -> None:
        """Take in that the trial in a directory has ended with an exit code."""
        number = int(directory.name)
        if code > ConfigError.exit_code:  # by a signal: it goes on another time
            return
        if code == ConfigError.exit_code and len(self._journal.trials) == 1:
            self._refused = True  # before any work, and so would be the others
            if not RunDirectory(directory).config.exists():
                self._journal.remove()
            return
        told = self._told(directory) if code == 0 else Ended("failed")
        self._queue.tell(number, told)
        say(f"[{number}] {self._line(told)}")

    def done(self) -> list[Path]:
        """Return the directories of the trials that are complete or pruned."""
        ended = [t.number for t in self._journal.trials if t.ended and t.ended.state != "failed"]
        return [self._directory / str(number) for number in ended]

    def best(self) -> Trial | None:
        """Return the best of the trials that are complete; None if none is."""
        return self._queue.best()

    def tell(self) -> None:
        """Print how many trials ended how, and the best."""
        trials = self._journal.trials
        counts = Counter(trial.ended.state for trial in trials if trial.ended is not None)
        if counts:
            say(f"search: {', '.join(f'{n} {state}' for state, n in sorted(counts.items()))}")
        best = self.best()
        if best is None:
            return
        metric, _ = judged_by(trials)
        words = shlex.join(f"{key}={value}" for key, value in best.values.items())
        say(f"best: [{best.number}] {metric} {_value(best)} with {words}")
        if str(metric).startswith("test/"):
            say(
                f"{metric} was chosen by, and is no estimate for new data any more. Set "
                "data.validation_fraction to choose by a validation split."
            )

    def _refuse(self) -> None:
        cfg, hydra_cfg = self._sweeper.config, self._sweeper.config.hydra
        trials = f"search.trials={self._cfg.trials}"
        refuse_without_optuna(trials)
        if not self._swept:
            raise ConfigError(
                f"{trials} has nothing to search over. Say so of some keys, such as "
                "'optimizer.lr=tag(log, interval(0.001,1))'."
            )
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise ConfigError(f"{trials} cannot be used under torchrun. Leave torchrun out.")
        if cfg.sweep.parallel != 1:
            raise ConfigError(
                f"sweep.parallel={cfg.sweep.parallel} is not supported by a search yet, whose "
                "trials follow from those before. Set sweep.parallel=1."
            )
        if cfg.folds is not None:
            raise ConfigError(
                f"folds={cfg.folds} is not supported by a search yet. Search by validation: "
                "set folds=null and data.validation_fraction, and cross-validate the best."
            )
        if cfg.privacy.selection is not None:
            raise ConfigError(
                f"privacy.selection={cfg.privacy.selection} needs trials that do not depend on "
                f"each other, and those of {trials} do. Leave one of them out."
            )
        subdir = cast(dict[str, Any], OmegaConf.to_container(hydra_cfg.sweep, resolve=False))
        if subdir["subdir"] != _NUMBERED:
            raise ConfigError(
                f"hydra.sweep.subdir={subdir['subdir']}: the trials of a search have their numbers "
                "for names. Leave it out."
            )
        if cfg.resume is True and is_generated(hydra_cfg, "hydra.sweep.dir"):
            command = ["python", "-m", self._mode, *sys.argv[1:]]
            refuse_unnamed(Path(hydra_cfg.sweep.dir).absolute(), "hydra.sweep.dir", command)

    def _overrides(self, values: dict[str, str]) -> list[str]:
        return [*self._fixed, *(f"{key}={text}" for key, text in values.items())]

    def _checked(self) -> Run:
        """Compose and check every choice, and both ends of every range; return the first run.

        Raises what any of them is refused for.
        """
        first = {key: dimension.extremes()[0] for key, dimension in self._space.items()}
        base = self._composed(first)
        for key, dimension in self._space.items():
            for text in dimension.extremes()[1:]:
                self._composed({**first, key: text})
        return base

    def _composed(self, values: dict[str, str]) -> Run:
        loader = self._sweeper.hydra_context.config_loader
        composed = loader.load_sweep_config(self._sweeper.config, self._overrides(values))
        assert isinstance(composed, DictConfig)
        return config.load(config.without_hydra(composed), self._mode, trial=True)

    def _settle(self) -> None:
        """Begin the journal, or go on with it; `RunDirectoryError` if that is of another search."""
        before = self._journal.settings
        if before is None:
            self._journal.begin(self._settings)
            return
        where = f"hydra.sweep.dir={self._directory}"
        if self._sweeper.config.resume is not True:
            raise RunDirectoryError(
                f"{where} holds a search. Set resume=true to continue it, or choose another "
                "directory."
            )
        there, here = flat(before), flat(self._settings)
        keys = sorted(there.keys() | here.keys(), key=lambda key: (key.startswith("config."), key))
        for key in keys:  # what is searched first: the first value of each key follows from it
            if there.get(key) != here.get(key):
                name = key.removeprefix("config.")
                raise RunDirectoryError(
                    f"{where} holds a search with {name}={there.get(key)}, not {name}="
                    f"{here.get(key)}. Set it as it was to continue, or choose another directory."
                )

    def _told(self, directory: Path) -> Ended:
        """Return how the trial in a directory has ended, by its result."""
        try:
            run = read_run(directory)
        except RunDirectoryError:  # a job of a caller's own that leaves no run
            return Ended("failed")
        metric = searched_by(run)
        if metric is None:
            return Ended("failed")
        lower, value = run.direction(metric) == "min", run.metrics.get(metric, math.nan)
        curve = {int(step): reached for step, reached in run.curve(metric, self._unit)}
        if run.status == "pruned":
            return Ended("pruned", metric, lower, None, curve)
        if not math.isfinite(value):
            return Ended("failed")
        return Ended("complete", metric, lower, value, curve)

    @property
    def _unit(self) -> str:
        """What a trial is evaluated after."""
        return "epoch" if self._mode == "distributed" else "round"

    def _line(self, told: Ended) -> str:
        """Return what is said of a trial that has ended."""
        best = self.best()
        so_far = "" if best is None else f"; best so far: [{best.number}] {_value(best)}"
        if told.state == "complete" and told.value is not None:
            return f"{told.metric} {metric_text(told.value)}{so_far}"
        when = f" after {self._unit} {max(told.curve)}" if told.curve else ""
        return f"{told.state}{when}{so_far}"


def _refuse_intervals(overrides: Sequence[Override]) -> None:
    """Refuse ranges that only a search can go over."""
    for override in overrides:
        if override.is_interval_sweep():
            key = override.get_key_element()
            raise ConfigError(
                f"{override.input_line} is a range without steps, which a sweep cannot run "
                f"through. Name the values, such as {key}=1,2,3 or '{key}=range(1,4)', or search "
                "it: search.trials=20."
            )


def _settings(
    mode: Mode, cfg: SearchConfig, space: dict[str, Dimension], base: Run
) -> dict[str, Any]:
    """Return what the first line of the journal says, and what must stay as it is."""
    other = "federated." if mode == "distributed" else "distributed."
    kept = {
        key: value
        for key, value in flat(asdict(without_passwords(base))).items()
        if not key.startswith((other, "search", "sweep"))
        and (key not in MAY_CHANGE or any(part in _MUST_STAY for part in key.split(".")))
    }
    settings = {
        "version": 1,
        "mode": mode,
        "seed": cfg.seed,
        "metric": cfg.metric,
        "sampler": vars(cfg.sampler),
        "pruner": vars(cfg.pruner),
        "space": {key: dimension.to_json() for key, dimension in space.items()},
        "config": kept,
    }
    plain: dict[str, Any] = json.loads(masked(json.dumps(settings)))
    return plain


def _value(trial: Trial) -> str:
    assert trial.ended is not None
    assert trial.ended.value is not None
    return metric_text(trial.ended.value)
