"""The commands: `heliotrope distributed | federated | evaluate | compare`, and exit codes.

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
from collections.abc import Callable
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
from heliotrope.errors import ConfigError, HeliotropeError, closest

__all__ = ["main", "run_mode"]

_USAGE = """usage: heliotrope COMMAND [key=value ...]

commands:
  distributed   train data-parallel       heliotrope distributed experiment=quickstart
  federated     train over clients        heliotrope federated experiment=quickstart
  evaluate      measure a checkpoint      heliotrope evaluate run=DIR [data=...] [data.dir=...]
  compare       set runs side by side     heliotrope compare DIR DIR ... [output=FILE]

A mode takes Hydra overrides, -m for sweeps, --cfg job to see the config, --help for the keys.
"""


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
    if command == "evaluate":
        from heliotrope.commands import evaluate_command

        return _guarded(lambda: evaluate_command(rest))
    if command == "compare":
        from heliotrope.commands import compare_command

        return _guarded(lambda: compare_command(rest))
    choices = ("distributed", "federated", "evaluate", "compare")
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
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through, to be explained below

    codes: list[int] = []
    directories: list[Path] = []

    def task(cfg: DictConfig) -> None:
        hydra_cfg = HydraConfig.get()
        directory = Path(hydra_cfg.runtime.output_dir)
        overrides = list(hydra_cfg.overrides.task)
        if hydra_cfg.mode == RunMode.MULTIRUN:
            print(f"[{hydra_cfg.job.num}] {' '.join(overrides)}", flush=True)

        def one_job() -> None:
            _refuse_other_mode(mode, overrides)
            job(config.load(cfg, mode), directory)

        # Explained here, not by Hydra; the rest of a sweep goes on after a job that failed.
        codes.append(_guarded(one_job, interruptible=False))
        directories.append(directory)

    decorated = hydra.main(
        version_base="1.3", config_path=str(config.conf_dir()), config_name="config"
    )(task)
    outside = _guarded(decorated)
    if len(directories) > 1:
        print(f"compare them: heliotrope compare {directories[0].parent}/*/")
    return outside or next((code for code in codes if code), 0)


def _refuse_other_mode(mode: Mode, overrides: list[str]) -> None:
    other = "federated" if mode == "distributed" else "distributed"
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0]
        if re.split(r"[./@]", key)[0] == other:
            raise ConfigError(
                f"{override} has no effect in {mode} mode. Leave it out, or run "
                f"python -m {other} with it."
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
