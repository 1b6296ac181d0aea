"""The commands, such as `heliotrope distributed`, and exit codes.

A mode's own entrypoint (`python -m distributed`) and the subcommand of an installed wheel end
in the same `run_mode`. Exit codes: 0 done, 2 usage or configuration, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from heliotrope import config
from heliotrope.config import Mode, Run
from heliotrope.config_errors import explain
from heliotrope.errors import ConfigError, HeliotropeError, RunDirectoryError, closest
from heliotrope.leaving import as_process
from heliotrope.tracking import clock_from_now

__all__ = ["command", "main", "run_mode"]

_USAGE = """usage: heliotrope COMMAND [key=value ...]

commands:
  distributed       train data-parallel     heliotrope distributed experiment=quickstart
  federated         train over clients      heliotrope federated experiment=quickstart
  evaluate          measure a checkpoint    heliotrope evaluate run=DIR [data=...] [data.dir=...]
  compare           set runs side by side   heliotrope compare DIR DIR ... [output=FILE]
  find-lr           try learning rates      heliotrope find-lr experiment=E [output=FILE]
  find-batch-size   time larger batches     heliotrope find-batch-size experiment=E [output=FILE]

A mode takes Hydra overrides, -m for sweeps, --cfg job to see the config, --help for the keys.
"""


# Module and function of the commands that are no mode; each is imported when it is called.
_COMMANDS = {
    "evaluate": ("heliotrope.commands", "evaluate_command"),
    "compare": ("heliotrope.commands", "compare_command"),
    "find-lr": ("heliotrope.find_commands", "find_lr_command"),
    "find-batch-size": ("heliotrope.find_commands", "find_batch_size_command"),
}


def command() -> NoReturn:
    """Be the process of one command: what is installed as `heliotrope`."""
    as_process(main)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    if command in ("distributed", "federated"):
        sys.argv = [f"heliotrope {command}", *rest]
        return int(_mode_module(command).main())
    if command in _COMMANDS:
        if {"-h", "--help"} & set(rest):
            print(_USAGE, end="")
            return 0
        module, function = _COMMANDS[command]
        return _guarded(lambda: getattr(importlib.import_module(module), function)(rest))
    choices = ("distributed", "federated", *_COMMANDS)
    print(f"heliotrope: no command '{command}'.{closest(command, choices)}", file=sys.stderr)
    print(_USAGE, end="", file=sys.stderr)
    return 2


def _mode_module(mode: str) -> ModuleType:
    """Import a mode's entrypoint: inside the package in a wheel, beside it in a checkout."""
    name = f"heliotrope.{mode}"
    if importlib.util.find_spec(name) is None:
        name = mode
    return importlib.import_module(f"{name}.__main__")


def run_mode(mode: Mode, job: Callable[[Run, Path], None]) -> int:
    """Compose the config from the command line, run `job(run, directory)`, return the exit code.

    `directory` is `hydra.run.dir`, or the job's own directory in a sweep.
    """
    config.register()
    OmegaConf.register_new_resolver("mode", lambda: mode, replace=True)
    OmegaConf.register_new_resolver("choices", lambda: _choices(mode), replace=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through, to be explained below

    codes: list[int] = []
    directories: list[Path] = []

    def task(cfg: DictConfig) -> None:
        hydra_cfg = HydraConfig.get()
        directory = Path(hydra_cfg.runtime.output_dir)
        overrides = OmegaConf.to_container(hydra_cfg.overrides.task, resolve=False)
        assert isinstance(overrides, list)
        sweeping = hydra_cfg.mode == RunMode.MULTIRUN
        if sweeping:
            print(f"[{hydra_cfg.job.num}] {' '.join(overrides)}", flush=True)

        def one_job() -> None:
            _refuse_other_mode(mode, overrides)
            if sweeping:
                _refuse_run_dir(hydra_cfg.overrides.hydra)
            try:
                job(config.load(cfg, mode), directory)
            except (KeyboardInterrupt, SystemExit):
                if (directory / "config.yaml").exists():
                    print(f"continue it: resume=true hydra.run.dir={directory}", file=sys.stderr)
                raise

        # Explained here, not by Hydra; the rest of a sweep goes on after a job that failed.
        with clock_from_now() if sweeping and hydra_cfg.job.num > 0 else nullcontext():
            codes.append(_guarded(one_job, interruptible=False))
        if not codes[-1]:
            directories.append(directory)
        elif codes[-1] == ConfigError.exit_code:
            _remove_if_unused(directory)

    decorated = hydra.main(
        version_base="1.3", config_path=str(config.conf_dir()), config_name="config"
    )(task)

    outside = _guarded(lambda: _composed(decorated))
    if len(directories) > 1:
        listed = map(str, directories) if any(codes) else [f"{directories[0].parent}/*/"]
        print(f"compare them: python -m heliotrope compare {' '.join(listed)}")
    return outside or next((code for code in codes if code), 0)


def _composed(decorated: Callable[[], None]) -> None:
    """Run Hydra; what it raises without a type of its own becomes a `ConfigError`."""
    try:
        decorated()
    except ValueError as error:  # of a group set to null
        raise ConfigError(explain(error)) from error
    except OSError as error:
        if isinstance(error, HydraException):  # such as a missing config: not about files
            raise
        raise RunDirectoryError(
            f"hydra.run.dir={error.filename} cannot be made: {error.strerror}. "
            "Choose another directory."
        ) from error


def _remove_if_unused(directory: Path) -> None:
    """Remove the directory that Hydra made for a job that was refused before any work."""
    if {path.name for path in directory.iterdir()} <= {".lock"}:
        (directory / ".lock").unlink(missing_ok=True)
        directory.rmdir()


def _choices(mode: Mode) -> str:
    """Return the config groups of a mode and their choices, a line each, for --help."""
    root = config.conf_dir()
    groups: dict[str, list[str]] = {}
    for path in sorted(root.glob("*/**/*.yaml")):
        group = path.parent.relative_to(root)
        if group.parts[0] != _other(mode):
            groups.setdefault(str(group), []).append(path.stem)
    return "\n".join(f"  {group}={'|'.join(names)}" for group, names in sorted(groups.items()))


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


def _guarded(action: Callable[[], object], *, interruptible: bool = True) -> int:
    """Run `action`; print an expected error in one paragraph and return its exit code."""
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        action()
        return 0
    except HeliotropeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return ConfigError.exit_code
    except Exception:  # noqa: BLE001 - not foreseen: tell all, and let a sweep go on
        traceback.print_exc()
        return HeliotropeError.exit_code
    except KeyboardInterrupt:
        if not interruptible:
            raise
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Turn SIGTERM into an exception, so that workers are stopped and files closed."""
    raise SystemExit(143)
