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
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_args

import hydra
from omegaconf import OmegaConf

from heliotrope import config, registry
from heliotrope.commands.composed_jobs import composed_once
from heliotrope.commands.guarded import guarded
from heliotrope.commands.jobs import Jobs, other_mode
from heliotrope.commands.overrides import prepared
from heliotrope.commands.parallel_jobs import ParallelJobs
from heliotrope.commands.search import searching
from heliotrope.commands.trials import drawn_trials
from heliotrope.config import Mode, Run
from heliotrope.config.explain import composing
from heliotrope.config.names import plain_name
from heliotrope.errors import ConfigError, RunDirectoryError, closest
from heliotrope.modes import mode_module
from heliotrope.runs.stamp import new_stamp
from heliotrope.signatures import parsed

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
  watch             live curves of runs   heliotrope watch [DIR or URL] [port=8765]
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
    "watch": ("heliotrope.commands.watch", "watch_command"),
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

    jobs = Jobs(mode, job, parallel := ParallelJobs(ray, mode))
    decorated = hydra.main(
        version_base="1.3", config_path=str(config.conf_dir()), config_name="config"
    )(jobs.task)

    def composed() -> None:
        with (
            drawn_trials(sys.argv[1:]) as jobs.drawing,
            searching(mode, jobs.search_by),
            composed_once(jobs.expect),
            parallel,
        ):
            _composed(decorated)
            jobs.run_planned()

    outside = guarded(composed)
    untold = guarded(jobs.tell)
    return outside or jobs.code or untold


def register_resolvers(mode: Mode, stamp: Callable[[], str] = new_stamp) -> None:
    """Make `${mode:}` and the others known that `conf/config.yaml` has; see `run_mode`."""
    OmegaConf.register_new_resolver("mode", lambda: mode, replace=True)
    OmegaConf.register_new_resolver("choices", lambda: _choices(mode), replace=True)
    OmegaConf.register_new_resolver("plain_name", plain_name, replace=True)
    OmegaConf.register_new_resolver("stamp", functools.cache(stamp), replace=True)


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
    return "\n".join(
        line for line in lines if re.split("[/=]", line.strip())[0] != other_mode(mode)
    )
