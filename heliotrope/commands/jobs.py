"""The jobs of a command: one, or those of a sweep, each in the directory that Hydra made for it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from heliotrope import config
from heliotrope.commands import sweeps
from heliotrope.commands.directories import is_generated, refuse_unnamed
from heliotrope.commands.folds import CrossValidation
from heliotrope.commands.guarded import guarded
from heliotrope.commands.output import say
from heliotrope.commands.parallel_jobs import ParallelJobs, PlannedJob
from heliotrope.commands.search import Search
from heliotrope.commands.trials import Drawing
from heliotrope.config import Mode, Run
from heliotrope.config.own_files import refuse_absent
from heliotrope.errors import ConfigError
from heliotrope.runs.clock import clock_from_now
from heliotrope.runs.pruning import PRUNING
from heliotrope.shell import typed
from heliotrope.system.process_exit import saying
from heliotrope.system.redaction import masked

__all__ = ["Jobs", "other_mode"]

# What the directory of a job, or of a sweep, holds before any work.
_MADE_FIRST = {".lock", "overrides.json", "multirun.yaml", PRUNING}


class Jobs:
    """What a command runs: one job, or those of a sweep, one after the other or several at a time.

    A job with `folds` is one for each fold. `codes` are their exit codes, `done` the directories of
    those that ended well. With `sweep.parallel`, jobs are planned while Hydra composes them and
    `parallel` prepares for them, and run once all are.
    """

    def __init__(
        self, mode: Mode, job: Callable[[Run, Path], None], parallel: ParallelJobs
    ) -> None:
        self._mode = mode
        self._job = job
        self._parallel = parallel
        self.codes: list[int] = []
        self.done: list[Path] = []
        self.drawing: Drawing | None = None
        self._search: Search | None = None
        self._ledger: str | None = None
        self._given: set[Path] = set()  # the directories of Hydra's jobs
        self._begun: dict[Path, None] = {}  # those that runs are in
        self._planned: list[PlannedJob] = []
        self._validations: dict[Path, CrossValidation] = {}  # by the directory of each fold
        self._reopened: dict[Path, bytes] = {}  # results of all folds that were taken back
        self._whole = Path()  # the whole command's directory
        self._named = ""  # the same, as one types it

    def expect(self, cfg: DictConfig, count: int) -> None:
        """Prepare for `count` jobs at a time such as that of `cfg`, before it is known to be one.

        A job that is refused says so by itself; those that are resumed may be completed.
        """
        if cfg.sweep.parallel == 1 or cfg.resume is True:
            return
        try:
            run = self._checked(config.without_hydra(cfg), cfg.hydra.overrides, sweeping=True)
        except Exception:  # noqa: BLE001 - raised again, and told, when the job's turn comes
            return
        folds = 1 if run.fold is not None else run.folds or 1
        self._parallel.prepare(run, count * folds)

    def _checked(self, cfg: DictConfig, overrides: Any, *, sweeping: bool) -> Run:
        """Return the run of a job that Hydra has composed with its `overrides`.

        Raises `ConfigError` if anything is wrong with it.
        """
        _refuse_other_mode(self._mode, overrides.task)
        if sweeping:
            _refuse_run_dir(overrides.hydra)
        else:
            _refuse_search(overrides.task)
        run = config.load(cfg, self._mode, trial=self._search is not None)
        refuse_absent(run)
        return run

    def task(self, cfg: DictConfig) -> None:
        """Run one job in the directory that Hydra has made for it; errors become its code."""
        hydra_cfg = HydraConfig.get()
        directory = Path(hydra_cfg.runtime.output_dir)
        overrides = OmegaConf.to_container(hydra_cfg.overrides.task, resolve=False)
        assert isinstance(overrides, list)
        sweeping = hydra_cfg.mode == RunMode.MULTIRUN
        key = "hydra.sweep.dir" if sweeping else "hydra.run.dir"
        whole = Path(hydra_cfg.sweep.dir).absolute() if sweeping else directory
        if cfg.resume is True and is_generated(hydra_cfg, key):
            self._refuse_unnamed(directory, whole, key)
            return
        this = sweeps.Job.of(overrides, sys.argv[1:])
        if sweeping:
            say(masked(f"[{hydra_cfg.job.num}] {' '.join(overrides)}"))
            _mask(whole / "multirun.yaml")
            if self.drawing is not None:
                self.drawing.write(whole)
            if cfg.resume is True and self._search is None:  # its trials are numbered
                directory = sweeps.directory_of(this, directory, self._given)
        found: list[PlannedJob] = []

        def check() -> None:
            sweeps.note(this, directory, only_if_empty=not sweeping)
            run = self._checked(cfg, hydra_cfg.overrides, sweeping=sweeping)
            self._ledger = run.privacy.ledger
            several = sweeping or (run.folds is not None and run.fold is None)
            if not several and run.sweep.parallel != 1:
                raise ConfigError(
                    f"sweep.parallel={run.sweep.parallel} has no effect without -m. Leave it out, "
                    "or add -m and the values to sweep over, such as seed=1,2."
                )
            number = str(hydra_cfg.job.num) if sweeping else ""
            found.extend(self._divided(run, directory, this, number))

        self._given.add(directory)
        self._whole, self._named = whole, typed(key, whole)
        # Explained here, not by Hydra; the rest of a sweep goes on after a job that failed.
        if code := guarded(check, interruptible=False):
            self._ended(directory, code)
        for job in found:
            if self._begin(job) == ConfigError.exit_code:
                break  # the other folds would be refused as well

    def _divided(
        self, run: Run, directory: Path, this: sweeps.Job, number: str
    ) -> list[PlannedJob]:
        """Return the jobs that a job of Hydra's is: itself, or one for each fold."""
        if run.folds is None or run.fold is not None:
            return [PlannedJob(number, run, directory)]
        whole = CrossValidation(run, directory)
        self._validations |= dict.fromkeys(whole.directories, whole)
        jobs = []
        for fold, place in enumerate(whole.directories):
            with suppress(OSError):  # the run says what is wrong with its directory
                place.mkdir(exist_ok=True)
            sweeps.note(this.of_fold(fold), place, only_if_empty=False)
            name = f"{number} {place.name}".strip()
            jobs.append(PlannedJob(name, replace(run, fold=fold), place))
        return jobs

    def _begin(self, job: PlannedJob) -> int:
        """Run a job, or plan it to be run beside others, unless it is completed.

        Return its exit code, or 0 if it is not known yet.
        """
        self._begun[job.directory] = None
        validation = self._validations.get(job.directory)

        def this_job() -> None:
            if job.name and job.run.resume:
                if sweeps.is_completed(job.run, self._mode, job.directory):
                    say(f"[{job.name}] is completed: {job.directory}")
                    return
                if validation is not None and (content := validation.reopen()) is not None:
                    self._reopened[validation.directory] = content
            if job.run.sweep.parallel != 1:
                self._planned.append(job)
                return
            if validation is not None:
                say(f"[{job.name}] begins in {job.directory}")
            with self._telling():
                self._job(job.run, job.directory)

        with clock_from_now() if self.codes else nullcontext():
            code = guarded(this_job, interruptible=False)
        if job not in self._planned:
            self._ended(job.directory, code)
        return code

    def run_planned(self) -> None:
        """Run what is planned, several jobs at a time."""
        if self._planned:
            with self._telling():
                self._parallel.run(self._planned, self._ended)

    def search_by(self, search: Search) -> None:
        """Let the command be a search, which is told how each of its trials ends."""
        self._search, self._whole = search, search.directory

    @property
    def code(self) -> int:
        """The exit code of all jobs together: of a search, 0 if a trial is complete."""
        if self._search is not None and self._search.best() is not None:
            return 0
        return next((code for code in self.codes if code), 0)

    def _ended(self, directory: Path, code: int) -> None:
        self.codes.append(code)
        if self._search is not None:
            self._search.ended(directory, code)
        validation = self._validations.get(directory)
        content = self._reopened.pop(
            directory if validation is None else validation.directory, None
        )
        if not code:
            self.done.append(directory)
        elif code == ConfigError.exit_code:
            _remove_if_unused(directory)
            if validation is not None:
                if content is not None:
                    validation.restore(content)
                for each in (*validation.directories, validation.directory):
                    _remove_if_unused(each)

    def tell(self) -> None:
        """Print what several jobs have spent and reached together, and write it down."""
        if self._ledger is not None and len(self.codes) > 1:
            from heliotrope.commands.ledger import spent_by  # here: its accountants take a while

            for whole in dict.fromkeys(directory.parent for directory in self._begun):
                for line in spent_by(Path(self._ledger), whole):
                    say(line)
        if os.environ.get("RANK", "0") != "0":  # of torchrun: one of its processes tells
            return
        for each in {each.directory: each for each in self._validations.values()}.values():
            each.write_result(self._mode, self.done)
        if self._search is not None:
            self.done = self._search.done()
        if len(self.done) > 1:
            sweeps.summarise(sorted(self.done, key=sweeps.place), self._whole)
            shown = [shlex.quote(str(directory)) for directory in self.done]
            listed = shown if any(self.codes) else [f"{shlex.quote(str(self._whole))}/*/"]
            say(f"compare them: python -m heliotrope compare {' '.join(listed)}")
        if self._search is not None:
            self._search.tell()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """If a signal ends the block, say how to go on, with all of the command."""

        def how_to_continue() -> None:
            if any((path / "config.yaml").exists() for path in self._begun):
                with suppress(OSError):  # nobody may read it any more
                    sys.stderr.write(f"continue it: resume=true {self._named}\n")

        try:
            with saying(how_to_continue):
                yield
        except (KeyboardInterrupt, SystemExit):
            how_to_continue()
            raise

    def _refuse_unnamed(self, directory: Path, whole: Path, key: str) -> None:
        """Refuse to resume what is not named: once, not for each job."""
        for made in dict.fromkeys((directory, whole)):
            _remove_if_unused(made)
        if not self.codes:
            command = ["python", "-m", self._mode, *sys.argv[1:]]
            self.codes.append(guarded(lambda: refuse_unnamed(whole, key, command)))


def _mask(path: Path) -> None:
    """Take passwords out of a file that Hydra has written, before any job of a sweep."""
    if path.exists():
        text = path.read_text()
        if masked(text) != text:
            path.write_text(masked(text))


def _remove_if_unused(directory: Path) -> None:
    """Remove the directory that Hydra made for a job that was refused before any work."""
    with suppress(FileNotFoundError):  # all ranks of torchrun clear away the one they share
        if {path.name for path in directory.iterdir()} <= _MADE_FIRST:
            for name in _MADE_FIRST:
                (directory / name).unlink(missing_ok=True)
            directory.rmdir()


def other_mode(mode: Mode) -> Mode:
    """Return the mode that a command does not run."""
    return "federated" if mode == "distributed" else "distributed"


def _refuse_other_mode(mode: Mode, overrides: Iterable[str]) -> None:
    other = other_mode(mode)
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0]
        if re.split(r"[./@]", key)[0] == other:
            raise ConfigError(
                f"{override} has no effect in {mode} mode. Leave it out, or run "
                f"python -m {other} with it."
            )


def _refuse_search(overrides: Iterable[str]) -> None:
    """Refuse what is typed of a search for a single run."""
    for override in overrides:
        if override.startswith(("search.", "search/")):
            raise ConfigError(
                f"{override} has no effect without -m. Leave it out, or add -m and what to search "
                "over, such as 'optimizer.lr=interval(0.01,1)'."
            )


def _refuse_run_dir(overrides: Iterable[str]) -> None:
    for override in overrides:
        if override.startswith("hydra.run.dir="):
            raise ConfigError(
                f"{override} has no effect in a sweep, whose jobs have a directory each. "
                "Set hydra.sweep.dir instead."
            )
