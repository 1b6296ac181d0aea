"""`plan`: what a launch would need in memory, bytes and time, foretold without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.box import SIMPLE_HEAD
from rich.table import Table

from heliotrope.commands.find import composed, plot_at, refuse_flags, save_plot
from heliotrope.config import Mode
from heliotrope.errors import ConfigError, closest
from heliotrope.modes import mode_module
from heliotrope.planning.network import Network, bandwidth_of, seconds_of
from heliotrope.planning.section import Curve, PlanSettings, Section
from heliotrope.report.units import bytes_text, milliseconds_text
from heliotrope.system.console import plain_console

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plan_command"]

_DEFAULTS = {
    "plan.mode": "both",
    "plan.bandwidth": "10Gb",
    "plan.latency": "50us",
    "plan.client_bandwidth": "20Mb",
    "plan.client_latency": "50ms",
}


def plan_command(arguments: Sequence[str]) -> None:
    """`experiment=E [key=value ...] [plan.KEY=VALUE] [output=FILE]`: memory, bytes, time.

    Nothing is trained: a few steps are timed. `plan.mode=distributed` or `federated` plans one mode
    alone; `plan.bandwidth=100Gb` and `plan.latency=5us` are those of each worker's link and of the
    server's, `plan.client_bandwidth` and `plan.client_latency` those of a client's. `output=FILE`
    draws the time over numbers of workers and clients, as `.svg`, `.png` or `.pdf`.
    """
    refuse_flags(arguments)
    given = [word for word in arguments if word.startswith("plan.")]
    outputs = [word.removeprefix("output=") for word in arguments if word.startswith("output=")]
    overrides = [word for word in arguments if not word.startswith(("plan.", "output="))]
    keys = _keys(given)
    modes, settings = _modes(keys["plan.mode"]), _settings(keys)
    output = plot_at(outputs[-1]) if outputs else None
    runs = {mode: composed(overrides, mode) for mode in modes}
    console = plain_console()
    sections = []
    console.print(
        f"network: {bytes_text(settings.network.bandwidth)}/s and "
        f"{milliseconds_text(settings.network.latency)} a message (plan.bandwidth, plan.latency)"
    )
    for mode, run in runs.items():
        section = mode_module(mode, "planning.plan").plan(run, settings)
        _print(section)
        sections.append(section)
    if output is not None:
        _plot(sections, output)
        console.print(f"plot: {output}")


def _keys(given: Sequence[str]) -> dict[str, str]:
    keys = dict(_DEFAULTS)
    for word in given:
        key, equals, value = word.partition("=")
        if key not in keys:
            raise ConfigError(
                f"{word}: there is no such key. Those of plan are {', '.join(keys)}."
                f"{closest(key, keys)}"
            )
        if not equals or not value:
            raise ConfigError(f"{word} has no value. Write, without spaces, {key}={keys[key]}.")
        keys[key] = value
    return keys


def _modes(name: str) -> tuple[Mode, ...]:
    every: tuple[Mode, ...] = get_args(Mode)
    if name not in (*every, "both"):
        raise ConfigError(
            f"plan.mode={name} is no mode.{closest(name, every)} Set plan.mode=distributed or "
            "plan.mode=federated, or leave it out for both."
        )
    return tuple(mode for mode in every if name in (mode, "both"))


def _settings(keys: dict[str, str]) -> PlanSettings:
    def network(bandwidth: str, latency: str) -> Network:
        return Network(bandwidth_of(bandwidth, keys[bandwidth]), seconds_of(latency, keys[latency]))

    return PlanSettings(
        network("plan.bandwidth", "plan.latency"),
        network("plan.client_bandwidth", "plan.client_latency"),
    )


def _print(section: Section) -> None:
    console = plain_console()
    console.print(f"\n{section.title}")
    for line in section.lines:
        console.print(f"  {line}")
    for shown in section.tables:
        console.print(f"\n  {shown.title}")
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in shown.columns:
            table.add_column(column, no_wrap=True)
        for row in shown.rows:
            table.add_row(*row)
        console.print(table)


def _plot(sections: Sequence[Section], output: Path) -> None:
    from matplotlib.figure import Figure  # here: it takes a second to import

    figure = Figure(figsize=(7, 4 * len(sections)), layout="constrained")
    for number, section in enumerate(sections, start=1):
        axes = figure.add_subplot(len(sections), 1, number)
        _draw(axes, section.title, section.curve)
    save_plot(figure, output)


def _draw(axes: Axes, title: str, curve: Curve) -> None:
    for name, seconds in curve.parts.items():
        shown = [(n, s) for n, s in zip(curve.counts, seconds, strict=True) if s > 0]
        if shown:
            axes.plot(*zip(*shown, strict=True), marker=".", label=name)
    if curve.marked is not None:
        label = f"{curve.marked:,}"
        axes.axvline(curve.marked, color="gray", linestyle="--", label=label)
    axes.set(xscale="log", yscale="log", xlabel=curve.counted, ylabel=curve.seconds, title=title)
    axes.legend()
