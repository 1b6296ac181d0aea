"""`evaluate` and `compare`: what can be asked of runs that are already there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf
from rich.table import Table

from heliotrope import config
from heliotrope.commands.arguments import keys_and_values
from heliotrope.commands.folds import fold_directories
from heliotrope.commands.trained import (
    read_checkpoint,
    read_config,
    trained_model,
)
from heliotrope.config import Run, TargetConfig
from heliotrope.config.checks.shared import check_shared
from heliotrope.data import load as load_data
from heliotrope.errors import ConfigError, closest
from heliotrope.evaluation import evaluate, named
from heliotrope.report import comparison_table, frontier_tables, read_run, write_report
from heliotrope.system.console import plain_console
from heliotrope.tasks import task_of

__all__ = ["compare_command", "evaluate_command", "evaluate_run"]

_EVALUATE_KEYS = (
    "run",
    "checkpoint",
    "data",
    "data.dir",
    "data.path",
    "data.test",
    "data.delimiter",
    "data.encoding",
    "data.decimal",
    "data.download",
    "device",
    "evaluation_batch_size",
    "plugins",
)


def evaluate_command(arguments: Sequence[str]) -> None:
    """`run=DIR [key=value ...]`: print what a checkpoint of a run measures, of the run's own data.

    Keys, each of which is the run's own if it is not given::

        checkpoint=NAME            a folder of DIR/checkpoints instead of the newest one
        data=NAME                  another dataset, prepared as in training
        data.dir=DIR               where MNIST and the like are looked for
        data.path=FILE             another file or folder of data=table|images|texts|arrays
        data.test=FILE             another file or folder of test rows
        data.delimiter=CHARACTER   of a .csv file
        data.encoding=NAME         of a .csv file
        data.decimal=CHARACTER     of numbers written as text: a point or a comma
        data.download=true         fetch what is not there
        device=auto|cpu|cuda
        evaluation_batch_size=N
        plugins=[mine.py]          code that the run needs, if it was never named here
    """
    config.load_plugins(arguments)
    needed = {"run": "DIR, the directory of a run"}
    given = keys_and_values(arguments, "evaluate", _EVALUATE_KEYS, needed)
    given.pop("plugins", None)
    directory = Path(given.pop("run"))
    name = given.pop("checkpoint", None)
    values = evaluate_run(directory, name, [f"{key}={value}" for key, value in given.items()])
    table = Table("metric", "value", title=f"{directory}", title_justify="left")
    for metric, number in values.items():
        table.add_row(metric, f"{number:.6f}")
    plain_console(soft_wrap=False).print(table)


def evaluate_run(
    directory: Path, name: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Return the metrics of a run's newest checkpoint, or of the one called `name`.

    `overrides` change the run's data (`data=mnist`, `data.dir=...`, `data.path=...`), device or
    evaluation_batch_size. Inputs are scaled as they were in training. Splits without examples
    are left out.
    """
    run = _overridden(read_config(directory), overrides)
    saved, preparation = read_checkpoint(directory, name)
    dataset = load_data(run.data, run.seed, preparation, fold=run.data_fold)
    task = task_of(dataset, run)
    model = trained_model(directory, run, saved, task)
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
            choices = config.choice_names("data")
            if value not in choices:
                raise ConfigError(
                    f"data={value} is not one of {', '.join(choices)}.{closest(value, choices)}"
                )
            chosen.data = config.defaults("data", value)
            chosen.folds = chosen.fold = None  # of the run's own data
            chosen.folds_by = "auto"
    dotted = [override for override in overrides if not override.startswith("data=")]
    result = OmegaConf.to_object(OmegaConf.merge(chosen, OmegaConf.from_dotlist(list(dotted))))
    assert isinstance(result, Run)
    check_shared(replace(result, target=TargetConfig()))  # the target was the training's
    return result


def compare_command(arguments: Sequence[str]) -> None:
    """`DIR DIR ... [output=FILE]`: print a table and write one report over all runs.

    Runs that differ only in seed or fold are one line: mean and standard deviation. The directory
    of a cross-validation stands for its folds.
    Of runs with privacy, accuracy against epsilon too, and which are on the frontier.
    """
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
    directories = [each for directory in directories for each in fold_directories(directory)]
    runs = [read_run(directory) for directory in directories]
    console = plain_console(soft_wrap=False)
    console.print(comparison_table(runs, console.width))
    for title, table in frontier_tables(runs):
        plain_console().print("\n", title, sep="")
        plain_console(soft_wrap=False).print(table)
    written = write_report(runs, output or _common_parent(directories) / "report.html")
    plain_console().print(f"\nreport: {written}")


def _common_parent(directories: Sequence[Path]) -> Path:
    """Return the folder that holds all runs: where their common report is looked for."""
    parents = [str(directory.resolve().parent) for directory in directories]
    return Path(os.path.commonpath(parents))
