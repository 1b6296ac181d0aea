"""The commands, such as `heliotrope distributed`, and exit codes.

A mode's own entrypoint (`python -m distributed`) and the subcommand of an installed wheel end
in the same `run_mode`. Exit codes: 0 done, 2 usage or configuration, 1 failed, 130 interrupted, 143
by SIGTERM, 141 since nobody reads the output.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import get_args

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from heliotrope import config, registry
from heliotrope.commands import sweeps
from heliotrope.commands.directories import refuse_unnamed
from heliotrope.commands.guarded import guarded
from heliotrope.commands.ledger import spent_by
from heliotrope.commands.output import say
from heliotrope.commands.overrides import prepared
from heliotrope.commands.parallel_jobs import PlannedJob, run_in_parallel
from heliotrope.commands.trials import Drawing, drawn_trials
from heliotrope.config import Mode, Run
from heliotrope.config.explain import composing
from heliotrope.config.names import plain_name
from heliotrope.config.own_files import refuse_absent
from heliotrope.errors import ConfigError, RunDirectoryError, closest
from heliotrope.modes import mode_module
from heliotrope.runs.clock import clock_from_now
from heliotrope.runs.stamp import new_stamp
from heliotrope.shell import typed
from heliotrope.signatures import parsed
from heliotrope.system.process_exit import saying
from heliotrope.system.redaction import masked

__all__ = ["VERBS", "main", "register_resolvers", "run_mode"]

_USAGE = """usage: heliotrope COMMAND [key=value ...]

commands:
  distributed       train data-parallel     heliotrope distributed experiment=quickstart
  federated         train over clients      heliotrope federated experiment=quickstart
  evaluate          measure a checkpoint    heliotrope evaluate run=DIR [data.path=FILE] [...]
  predict           apply a run to rows     heliotrope predict run=DIR input=FILE [output=FILE]
  generate          continue a text         heliotrope generate run=DIR prompt=TEXT [length=200]
  compare           set runs side by side   heliotrope compare DIR DIR ... [output=FILE]
  runs              list and remove runs  heliotrope runs [DIR] [where='seed=7'] [sort=age]
  audit             test the privacy      heliotrope audit run=DIR [parts=[bound]]
  new               begin a project         heliotrope new DIR
  list              names and their keys    heliotrope list [model=cnn] [plugins=[mine.py]]
  stats             look at the data        heliotrope stats experiment=E [output=FILE]
  privacy           epsilon beforehand      heliotrope privacy federated/privacy=central [...]
  find-lr           try learning rates      heliotrope find-lr experiment=E [output=FILE]
  find-batch-size   time larger batches     heliotrope find-batch-size experiment=E [output=FILE]
  tune              time client training    heliotrope tune experiment=E [federated.*=...]
  plan              what a launch needs     heliotrope plan experiment=E [plan.*=...] [...]
  submit            run it on a cluster     heliotrope submit cluster=ray [...] -- COMMAND [...]
  mirror            keep a run in storage   heliotrope mirror storage=URL -- distributed [...]
  deploy            onto real machines      heliotrope deploy [trial] experiment=E [output=DIR]

A mode takes Hydra overrides, -m for sweeps, --cfg job to see the config, --help for the keys.
What another command takes: heliotrope COMMAND --help.
"""


# Module and function of the commands that are no mode; each is imported when it is called.
_COMMANDS = {
    "evaluate": ("heliotrope.commands.evaluate", "evaluate_command"),
    "predict": ("heliotrope.commands.predict", "predict_command"),
    "generate": ("heliotrope.commands.generate", "generate_command"),
    "compare": ("heliotrope.commands.evaluate", "compare_command"),
    "runs": ("heliotrope.commands.runs", "runs_command"),
    "audit": ("heliotrope.commands.audit", "audit_command"),
    "new": ("heliotrope.commands.new", "new_command"),
    "list": ("heliotrope.commands.listing", "list_command"),
    "privacy": ("heliotrope.commands.privacy", "privacy_command"),
    "stats": ("heliotrope.commands.stats", "stats_command"),
    "find-lr": ("heliotrope.commands.find", "find_lr_command"),
    "find-batch-size": ("heliotrope.commands.find", "find_batch_size_command"),
    "tune": ("federated.tune", "tune_command"),
    "plan": ("heliotrope.commands.plan", "plan_command"),
    "submit": ("distributed.submit.command", "submit_command"),
    "mirror": ("distributed.submit.mirror", "mirror_command"),
    "deploy": ("federated.deploy.command", "deploy_command"),
}

VERBS = ("distributed", "federated", *_COMMANDS)
"""What stands first on a command line."""

# What the directory of a job, or of a sweep, holds before any work.
_MADE_FIRST = {".lock", "overrides.json", "multirun.yaml"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    if command in ("distributed", "federated"):
        sys.argv = [f"heliotrope {command}", *rest]
        return int(mode_module(command, "__main__").main())
    if command in _COMMANDS:
        module, function = _COMMANDS[command]
        own = rest[: rest.index("--")] if "--" in rest else rest
        if {"-h", "--help"} & set(own):
            text = parsed(registry.path_of(module), function, frozenset({"arguments"})).text
            print(f"usage: heliotrope {command} {text.replace('`', '')}")
            return 0
        return guarded(lambda: getattr(_imported(module), function)(rest))
    print(f"heliotrope: no command '{command}'.{closest(command, VERBS)}", file=sys.stderr)
    print(_USAGE, end="", file=sys.stderr)
    return 2


def _imported(module: str) -> ModuleType:
    """Import a module of the shared package, or of a mode."""
    package, _, name = module.partition(".")
    if package in get_args(Mode):
        return mode_module(package, name)
    return importlib.import_module(module)


def _no_ray() -> ModuleType:
    raise ConfigError("sweep.parallel needs Ray, which this command has not. Set sweep.parallel=1.")


def run_mode(
    mode: Mode,
    job: Callable[[Run, Path], None],
    stamp: Callable[[], str] = new_stamp,
    ray: Callable[[], ModuleType] = _no_ray,
) -> int:
    """Compose the config from the command line, run `job(run, directory)`, return the exit code.

    `directory` is `hydra.run.dir`, or the job's own directory in a sweep; `stamp` returns the part
    of a generated one that tells it from those of other commands; `ray` imports Ray, on which
    `sweep.parallel` jobs at a time are run, by `run_job` of the mode.
    """
    unusable = guarded(lambda: config.register_for(sys.argv[1:]))
    if unusable:
        return unusable
    register_resolvers(mode, stamp)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through, to be explained below

    jobs = _Jobs(mode, job)
    decorated = hydra.main(
        version_base="1.3", config_path=str(config.conf_dir()), config_name="config"
    )(jobs.task)

    def composed() -> None:
        with drawn_trials(sys.argv[1:]) as jobs.drawing:
            _composed(decorated)
            jobs.run_planned(ray)

    outside = guarded(composed)
    jobs.tell_spent()
    if len(jobs.done) > 1:
        sweeps.summarise(sorted(jobs.done, key=sweeps.place))
        shown = [shlex.quote(str(directory)) for directory in jobs.done]
        listed = shown if any(jobs.codes) else [f"{shlex.quote(str(jobs.done[0].parent))}/*/"]
        say(f"compare them: python -m heliotrope compare {' '.join(listed)}")
    return outside or next((code for code in jobs.codes if code), 0)


def register_resolvers(mode: Mode, stamp: Callable[[], str] = new_stamp) -> None:
    """Make `${mode:}` and the others known that `conf/config.yaml` has; see `run_mode`."""
    OmegaConf.register_new_resolver("mode", lambda: mode, replace=True)
    OmegaConf.register_new_resolver("choices", lambda: _choices(mode), replace=True)
    OmegaConf.register_new_resolver("plain_name", plain_name, replace=True)
    OmegaConf.register_new_resolver("stamp", functools.cache(stamp), replace=True)


class _Jobs:
    """What a command runs: one job, or those of a sweep, one after the other or several at a time.

    `codes` are their exit codes, `done` the directories of those that ended well. With
    `sweep.parallel`, jobs are planned while Hydra composes them, and run once all are.
    """

    def __init__(self, mode: Mode, job: Callable[[Run, Path], None]) -> None:
        self._mode = mode
        self._job = job
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
        if sweeping:
            say(masked(f"[{hydra_cfg.job.num}] {' '.join(overrides)}"))
            _mask(whole / "multirun.yaml")
            if self.drawing is not None:
                self.drawing.write(whole)
            this = sweeps.Job.of(overrides, sys.argv[1:])
            if cfg.resume is True:
                directory = sweeps.directory_of(this, directory, self._begun)

        def one_job() -> None:
            _refuse_other_mode(self._mode, overrides)
            if sweeping:
                _refuse_run_dir(hydra_cfg.overrides.hydra)
                sweeps.note(this, directory)
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

    def run_planned(self, ray: Callable[[], ModuleType]) -> None:
        """Run what is planned, several jobs at a time."""
        if self._planned:
            with self._telling():
                run_in_parallel(ray(), self._mode, self._planned, self._ended)

    def _ended(self, directory: Path, code: int) -> None:
        self.codes.append(code)
        if not code:
            self.done.append(directory)
        elif code == ConfigError.exit_code:
            _remove_if_unused(directory)

    def tell_spent(self) -> None:
        """Print what the trials of a sweep have spent together, if they share a ledger."""
        if self._ledger is not None and len(self.codes) > 1:
            for line in spent_by(Path(self._ledger), next(iter(self._begun)).parent):
                say(line)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """If a signal ends the block, say how to go on, with all of the command."""

        def how_to_continue() -> None:
            if any((path / "config.yaml").exists() for path in self._begun):
                with suppress(OSError):  # nobody may read it any more
                    print(f"continue it: resume=true {self._named}", file=sys.stderr)

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


def _composed(decorated: Callable[[], None]) -> None:
    """Run Hydra on the command line; what it refuses becomes a `ConfigError`."""
    sys.argv = [sys.argv[0], *prepared(sys.argv[1:])]
    try:
        with composing():
            decorated()
    except OSError as error:  # of Hydra: a job's own are caught where it runs
        if error.filename is None:
            raise
        if os.path.exists(error.filename) and not isinstance(error, FileExistsError):  # noqa: PTH110 - does not raise
            raise ConfigError(
                f"{error.filename} cannot be read: {error.strerror}. Make it a file that you may "
                "read, or choose another."
            ) from error
        key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(sys.argv) else "hydra.run.dir"
        raise RunDirectoryError(
            f"{key}={error.filename} cannot be made: {error.strerror}. Choose another directory."
        ) from error


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


def _choices(mode: Mode) -> str:
    """Return the config groups of a mode and their choices, a line each, for --help."""
    root = config.conf_dir()
    groups: dict[str, list[str]] = {}
    submitted = {f"cluster/{name}.yaml" for name in registry.names("cluster")}
    for path in sorted(root.glob("*/**/*.yaml")):
        if str(path.relative_to(root)) in submitted:
            continue
        groups.setdefault(str(path.parent.relative_to(root)), []).append(path.stem)
    for group in config.GROUPS:
        known = groups.setdefault(group, [])
        known += (name for name in config.choice_names(group) if name not in known)
    lines = (f"  {group}={'|'.join(names)}" for group, names in sorted(groups.items()))
    return "\n".join(line for line in lines if re.split("[/=]", line.strip())[0] != _other(mode))


def _other(mode: Mode) -> Mode:
    return "federated" if mode == "distributed" else "distributed"


def _refuse_other_mode(mode: Mode, overrides: list[str]) -> None:
    other = _other(mode)
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
