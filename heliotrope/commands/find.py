"""`find-lr` and `find-batch-size`: a number to set before a run, and a plot that shows why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir

from heliotrope import config
from heliotrope.commands.overrides import checked
from heliotrope.config import Mode, Run
from heliotrope.config.explain import composing
from heliotrope.config.workers import worker_range
from heliotrope.errors import ConfigError
from heliotrope.modes import mode_module
from heliotrope.system.console import plain_console
from heliotrope.training.finders import Finding, find_batch_size, find_lr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "composed",
    "find_batch_size_command",
    "find_lr_command",
    "plot_at",
    "refuse_flags",
    "run_of",
    "save_plot",
]


def find_lr_command(arguments: Sequence[str]) -> None:
    """`[key=value ...] [output=FILE]`: print a learning rate, save the losses as a plot."""
    run, output = run_of(arguments, "find-lr.png", "distributed")
    finding = find_lr(run)
    _plot(finding, output, "optimizer.lr", "training loss, smoothed")
    _say(f"optimizer.lr={finding.best:.2g}", output)


def find_batch_size_command(arguments: Sequence[str]) -> None:
    """`[key=value ...] [output=FILE]`: print a batch size, save the speeds as a plot."""
    run, output = run_of(arguments, "find-batch-size.png", "distributed")
    finding = find_batch_size(run, mode_module("distributed", "loop.single_worker").SingleWorker)
    _plot(finding, output, "examples a step and worker", "examples a second and worker")
    workers = worker_range(run.distributed.workers)[1]
    size = int(finding.best)
    _say(f"distributed.batch_size={size * workers}  ({size} for each of {workers})", output)


def run_of(arguments: Sequence[str], default: str, mode: Mode) -> tuple[Run, Path]:
    """Return the run that the overrides make of the configuration, and where the plot goes.

    Raises `ConfigError` naming the word at fault, or the key whose value is.
    """
    refuse_flags(arguments)
    overrides = [word for word in arguments if not word.startswith("output=")]
    outputs = [word.removeprefix("output=") for word in arguments if word not in overrides]
    run = composed(overrides, mode)
    return run, plot_at(outputs[-1] if outputs else default)


def refuse_flags(arguments: Sequence[str]) -> None:
    """Raise `ConfigError` naming the first flag."""
    flags = [word for word in arguments if word.startswith("-")]
    if flags:
        raise ConfigError(f"{flags[0]}: this takes key=value and output=FILE, and no flags.")


def composed(overrides: Sequence[str], mode: Mode) -> Run:
    """Return the run of a mode that the overrides make of the configuration.

    Raises `ConfigError` naming the key whose value is at fault.
    """
    config.register_for(overrides)
    folder = str(config.conf_dir())
    with composing(), initialize_config_dir(config_dir=folder, version_base="1.3"):
        return config.load(compose("config", overrides=checked(overrides)), mode)


def plot_at(name: str) -> Path:
    """Return where a plot goes; raises `ConfigError` naming `output` if it cannot be there."""
    output = Path(name or ".")
    if not output.parent.is_dir():
        raise ConfigError(f"output={output}: there is no folder {output.parent}. Name another.")
    if output.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"output={output} must end in .png, .svg or .pdf. Set output=FILE.")
    return output


def _plot(finding: Finding, output: Path, what: str, measured: str) -> None:
    from matplotlib.figure import Figure  # here: it takes a second to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(finding.tried, finding.measured, marker=".")
    axes.axvline(finding.best, color="gray", linestyle="--", label=f"{finding.best:.2g}")
    axes.set(xscale="log", xlabel=what, ylabel=measured)
    axes.legend()
    save_plot(figure, output)


def save_plot(figure: Figure, output: Path) -> None:
    """Write a plot; raises `ConfigError` naming `output` if it cannot be written."""
    try:
        figure.savefig(output)
    except OSError as error:
        raise ConfigError(
            f"output={output} cannot be written: {error.strerror}. Name another file."
        ) from error


def _say(found: str, output: Path) -> None:
    console = plain_console()
    console.print(found)
    console.print(f"plot: {output}")
