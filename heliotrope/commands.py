"""`evaluate` and `compare`: what can be asked of runs that are already there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from heliotrope import checkpoint, config
from heliotrope.config import Run, TargetConfig
from heliotrope.config_checks import check_shared
from heliotrope.data import Scaling
from heliotrope.data import load as load_data
from heliotrope.errors import ConfigError, closest
from heliotrope.evaluation import evaluate, named
from heliotrope.models import build
from heliotrope.report import comparison_table, read_run, write_report
from heliotrope.resources import pick_device
from heliotrope.rundir import RunDirectory
from heliotrope.tasks import task_of

__all__ = ["compare_command", "evaluate_command", "evaluate_run"]

_EVALUATE_KEYS = (
    "run",
    "checkpoint",
    "data",
    "data.dir",
    "data.download",
    "device",
    "evaluation_batch_size",
)


def evaluate_command(arguments: Sequence[str]) -> None:
    """`run=DIR [checkpoint=NAME] [data=NAME] [data.dir=DIR] ...`: print the metrics."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in _EVALUATE_KEYS:
            raise ConfigError(
                f"evaluate takes key=value with the keys {', '.join(_EVALUATE_KEYS)}, "
                f"not '{argument}'.{closest(key, _EVALUATE_KEYS)}"
            )
        given[key] = value
    if "run" not in given:
        raise ConfigError("evaluate needs run=DIR, the directory of a run.")
    directory = Path(given.pop("run"))
    name = given.pop("checkpoint", None)
    values = evaluate_run(directory, name, [f"{key}={value}" for key, value in given.items()])
    table = Table("metric", "value", title=f"{directory}", title_justify="left")
    for metric, number in values.items():
        table.add_row(metric, f"{number:.6f}")
    Console().print(table)


def evaluate_run(
    directory: Path, name: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Return the metrics of a run's newest checkpoint, or of the one called `name`.

    `overrides` change the run's data (`data=mnist`, `data.dir=...`), device or
    evaluation_batch_size. Inputs are scaled as they were in training. Splits without examples
    are left out.
    """
    home = RunDirectory(directory)
    if not home.config.exists():
        raise ConfigError(
            f"run={directory} is no run directory: it has no config.yaml. "
            "Name the directory that a run wrote."
        )
    run = _overridden(config.from_resolved(home.config), overrides)
    found = sorted(path.name for path in home.checkpoints.glob("[0-9]*"))
    if name is not None and name not in found:
        raise ConfigError(
            f"checkpoint={name} is not in {home.checkpoints}. "
            f"There are: {', '.join(found) or 'none yet'}."
        )
    console = Console(stderr=True)
    saved = (
        checkpoint.load(home.checkpoints / name)
        if name is not None
        else checkpoint.latest(home.checkpoints, lambda line: console.print(line, style="red"))
    )
    if saved is None:
        raise ConfigError(f"run={directory} has no checkpoint yet.")
    dataset = load_data(run.data, run.seed, Scaling(**saved.state["scaling"]))
    task = task_of(dataset)
    model = build(run.model, task, run.seed)
    checkpoint.load_weights(model, saved.model, home.checkpoints)
    model.to(pick_device(run.device))
    values: dict[str, float] = {}
    for split_name, split in (("validation", dataset.validation), ("test", dataset.test)):
        if len(split):
            values |= named(evaluate(model, task, split, run.evaluation_batch_size), split_name)
    return values


def _overridden(run: Run, overrides: Sequence[str]) -> Run:
    chosen = OmegaConf.structured(run)
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "data":
            choices = config.SCHEMAS["data"]
            if value not in choices:
                raise ConfigError(
                    f"data={value} is not one of {', '.join(choices)}.{closest(value, choices)}"
                )
            path = config.conf_dir() / "data" / f"{value}.yaml"
            values = cast(DictConfig, OmegaConf.load(path))
            values.pop("defaults")
            chosen.data = OmegaConf.merge(OmegaConf.structured(choices[value]), values)
    dotted = [override for override in overrides if not override.startswith("data=")]
    result = OmegaConf.to_object(OmegaConf.merge(chosen, OmegaConf.from_dotlist(list(dotted))))
    assert isinstance(result, Run)
    check_shared(replace(result, target=TargetConfig()))  # the target was the training's
    return result


def compare_command(arguments: Sequence[str]) -> None:
    """`DIR DIR ... [output=FILE]`: print a table and write one report over all runs."""
    directories, output = [], None
    for argument in arguments:
        if argument.startswith("output="):
            output = Path(argument.removeprefix("output="))
        elif argument.startswith("-") or (argument.count("=") and not Path(argument).exists()):
            raise ConfigError(f"compare takes run directories and output=FILE, not '{argument}'.")
        else:
            directories.append(Path(argument))
    if not directories:
        raise ConfigError("compare needs at least one run directory.")
    runs = [read_run(directory) for directory in directories]
    Console().print(comparison_table(runs))
    written = write_report(runs, output or _common_parent(directories) / "report.html")
    Console(soft_wrap=True).print(f"\nreport: {written}", highlight=False)


def _common_parent(directories: Sequence[Path]) -> Path:
    """Return the folder that holds all runs: where their common report is looked for."""
    parents = [str(directory.resolve().parent) for directory in directories]
    return Path(os.path.commonpath(parents))
