"""The jobs of a command: one, or those of a sweep, each in the directory that Hydra made for it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from heliotrope import config
from heliotrope.commands import sweeps
from heliotrope.commands.directories import refuse_unnamed
from heliotrope.commands.guarded import guarded
from heliotrope.commands.output import say
from heliotrope.commands.parallel_jobs import ParallelJobs, PlannedJob, expected_jobs
from heliotrope.commands.trials import Drawing
from heliotrope.config import Mode, Run
from heliotrope.config.own_files import refuse_absent
from heliotrope.errors import ConfigError
from heliotrope.runs.clock import clock_from_now
from heliotrope.shell import typed
from heliotrope.system.process_exit import saying
from heliotrope.system.redaction import masked

__all__ = ["Jobs", "other_mode"]

# What the directory of a job, or of a sweep, holds before any work.
_MADE_FIRST = {".lock", "overrides.json", "multirun.yaml"}


class Jobs:
    """What a command runs: one job, or those of a sweep, one after the other or several at a time.

    `codes` are their exit codes, `done` the directories of those that ended well. With
    `sweep.parallel`, jobs are planned while Hydra composes them and `parallel` prepares for them,
    and run once all are.
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
        self._ledger: str | None = None
        self._begun: set[Path] = set()
        self._planned: list[PlannedJob] = []
        self._named = ""  # the whole command's directory, as one types it

    def task(self, cfg: DictConfig) -> None:
        """Run one job in the directory that Hydra has made for it; errors become its code."""
        hydra_cfg = HydraConfig.get()
        directory = Path(hydra_cfg.runtime.output_dir)
        overrides = OmegaConf.to_container(hydra_cfg.overrides.task, resolve=False)
        assert isinstance(overrides, list)
        sweeping = hydra_cfg.mode == RunMode.MULTIRUN
        key = "hydra.sweep.dir" if sweeping else "hydra.run.dir"
        whole = Path(hydra_cfg.sweep.dir).absolute() if sweeping else directory
        if cfg.resume is True and _is_generated(hydra_cfg, key):
            self._refuse_unnamed(directory, whole, key)
            return
        this = sweeps.Job.of(overrides, sys.argv[1:])
        if sweeping:
            say(masked(f"[{hydra_cfg.job.num}] {' '.join(overrides)}"))
            _mask(whole / "multirun.yaml")
            if self.drawing is not None:
                self.drawing.write(whole)
            if cfg.resume is True:
                directory = sweeps.directory_of(this, directory, self._begun)

        def one_job() -> None:
            _refuse_other_mode(self._mode, overrides)
            if sweeping:
                _refuse_run_dir(hydra_cfg.overrides.hydra)
            sweeps.note(this, directory, only_if_empty=not sweeping)
            run = config.load(cfg, self._mode)
            self._ledger = run.privacy.ledger
            refuse_absent(run)
            if not sweeping and run.sweep.parallel != 1:
                raise ConfigError(
                    f"sweep.parallel={run.sweep.parallel} has no effect without -m. Leave it out, "
                    "or add -m and the values to sweep over, such as seed=1,2."
                )
            if sweeping and run.resume and sweeps.is_completed(run, self._mode, directory):
                say(f"[{hydra_cfg.job.num}] is completed: {directory}")
            elif sweeping and run.sweep.parallel != 1:
                self._planned.append(PlannedJob(hydra_cfg.job.num, run, directory))
                self._parallel.prepare(self._planned[0], expected_jobs(sys.argv[1:]))
            else:
                with self._telling():
                    self._job(run, directory)

        self._begun.add(directory)
        self._named = typed(key, whole)
        # Explained here, not by Hydra; the rest of a sweep goes on after a job that failed.
        with clock_from_now() if sweeping and hydra_cfg.job.num > 0 else nullcontext():
            code = guarded(one_job, interruptible=False)
        if not (self._planned and self._planned[-1].directory == directory):
            self._ended(directory, code)

    def run_planned(self) -> None:
        """Run what is planned, several jobs at a time."""
        if self._planned:
            with self._telling():
                self._parallel.run(self._planned, self._ended)

    def _ended(self, directory: Path, code: int) -> None:
        self.codes.append(code)
        if not code:
            self.done.append(directory)
        elif code == ConfigError.exit_code:
            _remove_if_unused(directory)

    def tell_spent(self) -> None:
        """Print what the trials of a sweep have spent together, if they share a ledger."""
        if self._ledger is not None and len(self.codes) > 1:
            from heliotrope.commands.ledger import spent_by  # here: its accountants take a while

            for line in spent_by(Path(self._ledger), next(iter(self._begun)).parent):
                say(line)

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


def _is_generated(hydra_cfg: HydraConf, key: str) -> bool:
    """Return whether nobody chose the directory that `key` is."""
    hydra_values = OmegaConf.to_container(hydra_cfg, resolve=False)
    assert isinstance(hydra_values, dict)
    _, group, name = key.split(".")
    return "${stamp:" in str(hydra_values[group][name])


def other_mode(mode: Mode) -> Mode:
    """Return the mode that a command does not run."""
    return "federated" if mode == "distributed" else "distributed"


def _refuse_other_mode(mode: Mode, overrides: list[str]) -> None:
    other = other_mode(mode)
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0]
        if re.split(r"[./@]", key)[0] == other:
            raise ConfigError(
                f"{override} has no effect in {mode} mode. Leave it out, or run "
                f"python -m {other} with it."
            )


def _refuse_run_dir(overrides: Iterable[str]) -> None:
    for override in overrides:
        if override.startswith("hydra.run.dir="):
            raise ConfigError(
                f"{override} has no effect in a sweep, whose jobs have a directory each. "
                "Set hydra.sweep.dir instead."
            )
