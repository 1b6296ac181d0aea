"""Charts as inline SVG, drawn by matplotlib and coloured by the page.

Colours are written as placeholders and replaced by CSS variables, so one drawing follows the
reader's light or dark theme. No text from a run is ever given to matplotlib (which would read
`$` as mathematics): names live in the page, where they are escaped.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heliotrope.report.record import Point, drawable
from heliotrope.report.replicates import averaged
from heliotrope.report.units import MINUS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "AXES",
    "COLOURS",
    "MARKERS",
    "Chart",
    "Drawing",
    "Scatter",
    "Spread",
    "Studio",
    "studio",
]

COLOURS = 7  # CSS variables --s0 ... --s6
MARKERS = "os^DvP"  # one fewer than colours, so that pairs repeat only after 42 runs

_INK, _MUTED, _GRID, _CARD = "#fe0100", "#fe0200", "#fe0300", "#fe0400"
_NAMED = {_INK: "--ink", _MUTED: "--muted", _GRID: "--grid", _CARD: "--card"}
_COUNTED = "#0072b2"
_MOST_POINTS = 300
_LOG_FROM = 8  # runs whose extents differ by more share a logarithmic axis

# axis -> its label, and (from this extent on, divide by, unit)
AXES: dict[str, tuple[str, tuple[tuple[float, float, str], ...]]] = {
    "examples_seen": (
        "examples seen",
        ((2e6, 1e6, "million examples"), (2e3, 1e3, "thousand examples"), (0, 1, "examples")),
    ),
    "seconds": ("wall time", ((7200, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds"))),
    "bytes": (
        "bytes exchanged",
        ((1e12, 1e12, "TB"), (1e9, 1e9, "GB"), (1e6, 1e6, "MB"), (1e3, 1e3, "kB"), (0, 1, "bytes")),
    ),
    "round": ("rounds", ((0, 1, "rounds"),)),
    "epoch": ("epochs", ((0, 1, "epochs"),)),
}


@dataclass(frozen=True)
class Drawing:
    """An SVG element, its caption, and in words what it shows."""

    caption: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Chart:
    """The curves of each line, one a seed (empty: it has none); `goals` are horizontal lines."""

    axis: str
    curves: Sequence[Sequence[Sequence[Point]]]
    goals: Sequence[float] = ()


@dataclass(frozen=True)
class Spread:
    """The clients' values at each round, and the mean that was reported with them."""

    rounds: Sequence[float]
    values: Sequence[Sequence[float]]
    mean: Sequence[Point]
    limits: tuple[float, float]


@dataclass(frozen=True)
class Scatter:
    """Runs by what they spent and reached.

    Parameters
    ----------
    points
        Epsilon, value and index of each run.
    frontier
        Those that none is better than, by epsilon.
    without
        Index and value of runs that have no epsilon.
    label
        Of the values.
    """

    points: Sequence[tuple[float, float, int]]
    frontier: Sequence[Point]
    without: Sequence[tuple[int, float]]
    label: str


@contextmanager
def studio() -> Iterator[Studio]:
    """Open matplotlib with its own defaults, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "heliotrope"})
        yield Studio()


class Studio:
    """Draws; every drawing has ids of its own, so many can share a page."""

    def __init__(self) -> None:
        self._drawn = 0

    def curves(self, chart: Chart) -> str:
        """Draw learning curves: of several seeds each thinly, their mean, and its deviation."""
        figure, axes = _canvas()
        extents = [max(x for x, _ in c) for seeds in chart.curves for c in seeds if c]
        log = _far_apart(extents)
        divide = _label_x(axes, chart.axis, max(extents, default=0), log)

        def visible(curve: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
            shown = [p for p in curve if drawable(p[1]) and (p[0] > 0 or not log)]
            return [(p[0] / divide, *p[1:]) for p in thinned(shown)]

        for index, seeds in enumerate(chart.curves):
            if len(seeds) > 1:
                _seeds(axes, [visible(curve) for curve in seeds], visible(averaged(seeds)), index)
            else:
                _plot(axes, [p for curve in seeds for p in visible(curve)], index)
        for goal in chart.goals:
            axes.axhline(goal, color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
        if extents and not log and max(extents) > 0:  # what a run cost is read from zero
            axes.set_xlim(-0.02 * max(extents) / divide, 1.03 * max(extents) / divide)
        return self._svg(figure)

    def spread(self, spread: Spread, index: int) -> str:
        """Draw bands over rounds: worst to best, the middle half, the median, the mean."""
        import numpy as np

        figure, axes = _canvas()
        _label_x(axes, "round", max(spread.rounds), log=False)
        percentiles = np.array([np.percentile(v, [0, 25, 50, 75, 100]) for v in spread.values])
        rounds = np.array(spread.rounds)
        if len(rounds) == 1:  # a band needs a width
            rounds = np.array([rounds[0] - 0.5, rounds[0] + 0.5])
            percentiles = np.repeat(percentiles, 2, axis=0)
        colour = _series(index)
        axes.fill_between(
            rounds, percentiles[:, 0], percentiles[:, 4], color=colour, alpha=0.16, linewidth=0
        )
        axes.fill_between(
            rounds, percentiles[:, 1], percentiles[:, 3], color=colour, alpha=0.32, linewidth=0
        )
        axes.plot(rounds, percentiles[:, 2], color=colour, linewidth=2)
        if spread.mean:
            x, y = zip(*spread.mean, strict=True)
            axes.plot(x, y, color=_INK, linewidth=1.2, linestyle=(0, (1.5, 2)))
        axes.set_ylim(*spread.limits)
        return self._svg(figure)

    def frontier(self, scatter: Scatter) -> str:
        """Draw values against epsilon on a logarithmic axis, and runs without one as lines."""
        from matplotlib.ticker import LogLocator

        figure, axes = _canvas(width=520, height=300, left=58)
        for index, value in scatter.without:
            axes.axhline(value, color=_series(index), linewidth=1.4, linestyle=(0, (4, 3)))
        if len(scatter.frontier) > 1:
            axes.step(*zip(*scatter.frontier, strict=True), where="post", color=_MUTED, linewidth=1)
        for epsilon, value, index in scatter.points:
            _plot(axes, [(epsilon, value)], index)
        _log_x(axes)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.set_xlabel("epsilon (log scale)", color=_MUTED, fontsize=11)
        axes.set_ylabel(scatter.label, color=_MUTED, fontsize=11)
        return self._svg(figure)

    def ranked(self, values: Sequence[Sequence[float]]) -> str:
        """Draw each run's clients from worst to best, as shares of all its clients.

        `values[run]` is sorted, worst first; empty for a run without clients.
        """
        figure, axes = _canvas()
        axes.set_xlabel("clients, worst to best (%)", color=_MUTED, fontsize=11)
        for index, ranked in enumerate(values):
            step = max(1, len(ranked) // _MOST_POINTS)
            axes.plot(
                [100 * (i + 0.5) / len(ranked) for i in range(0, len(ranked), step)],
                list(ranked[::step]),
                color=_series(index),
                linestyle="none",
                marker=MARKERS[index % len(MARKERS)],
                markersize=5 if len(ranked) < 80 else 3.5,
                alpha=0.85,
                markeredgewidth=0,
            )
        axes.set_xlim(-2, 102)
        return self._svg(figure)

    def unit_curves(
        self, curves: Sequence[Sequence[Point]], names: Sequence[str], *, diagonal: bool
    ) -> str:
        """Draw curves within the unit square; a run without one has no points."""
        figure, axes = _canvas(height=300, left=58)
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
        for index, curve in enumerate(curves):
            _plot(axes, curve, index)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set_xlabel(names[0], color=_MUTED, fontsize=11)
        axes.set_ylabel(names[1], color=_MUTED, fontsize=11)
        return self._svg(figure)

    def histogram(self, shades: Sequence[Sequence[float]], limits: tuple[float, float]) -> str:
        """Draw a square histogram, rows along the x axis; shades in [0, 1] are opacities."""
        import numpy as np
        from matplotlib.colors import to_rgb

        figure, axes = _canvas(height=300, left=58)
        axes.grid(False)
        alpha = np.array(shades, dtype=float).T
        image = np.empty((*alpha.shape, 4))
        image[..., :3] = to_rgb(_COUNTED)
        image[..., 3] = alpha
        edges = (*limits, *limits)
        axes.imshow(image, interpolation="nearest", origin="lower", extent=edges, aspect="auto")
        axes.plot(limits, limits, color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
        axes.set_xlabel("true", color=_MUTED, fontsize=11)
        axes.set_ylabel("predicted", color=_MUTED, fontsize=11)
        return self._svg(figure)

    def matrix(self, shades: Sequence[Sequence[float]], hit: str, miss: str) -> str:
        """Draw a large confusion matrix as an image; shades in [0, 1] are opacities."""
        import numpy as np
        from matplotlib.colors import to_rgb

        figure, axes = _canvas(height=380)
        axes.grid(False)
        alpha = np.array(shades, dtype=float)
        image = np.empty((*alpha.shape, 4))
        image[..., :3] = to_rgb(miss)
        image[..., 3] = alpha
        diagonal = np.arange(len(alpha))
        image[diagonal, diagonal, :3] = to_rgb(hit)
        axes.imshow(image, interpolation="nearest")
        axes.set_xlabel("predicted class", color=_MUTED, fontsize=11)
        axes.set_ylabel("true class", color=_MUTED, fontsize=11)
        return self._svg(figure)

    def _svg(self, figure: Figure) -> str:
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        self._drawn += 1
        return _for_page(buffer.getvalue(), f"c{self._drawn}-")


def thinned(
    points: Sequence[tuple[float, ...]], most: int = _MOST_POINTS
) -> list[tuple[float, ...]]:
    """Return at most about `most` points that keep every stretch's lowest and highest value."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 2))
    kept: list[tuple[float, ...]] = []
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        ends = {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
        kept += [points[i] for i in sorted(ends)]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _canvas(width: int = 380, height: int = 236, left: int = 44) -> tuple[Figure, Axes]:
    """Return a figure of `width` x `height` SVG units (points) with quiet axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((left / width, 40 / height, 1 - (left + 12) / width, 1 - 52 / height))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.grid(axis="y", color=_GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=10.5, labelcolor=_MUTED, pad=6)
    axes.margins(x=0.03, y=0.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(_tick))
    return figure, axes


def _plot(axes: Axes, points: Sequence[tuple[float, ...]], index: int) -> None:
    """Draw one line (x and y come first in a point) in its colour, with about eight marks."""
    axes.plot(
        [point[0] for point in points],
        [point[1] for point in points],
        color=_series(index),
        linewidth=1.9,
        marker=MARKERS[index % len(MARKERS)],
        markevery=max(1, len(points) // 8),
        markersize=5.5,
        markeredgecolor=_CARD,
        markeredgewidth=0.8,
    )


def _seeds(
    axes: Axes,
    curves: Sequence[Sequence[tuple[float, ...]]],
    mean: Sequence[tuple[float, ...]],
    index: int,
) -> None:
    """Draw the curves of several seeds thinly, and their mean in a band of one deviation."""
    colour = _series(index)
    for curve in curves:
        axes.plot(
            [point[0] for point in curve],
            [point[1] for point in curve],
            color=colour,
            linewidth=0.7,
            alpha=0.45,
        )
    places = [x for x, _, _ in mean]
    low, high = [y - d for _, y, d in mean], [y + d for _, y, d in mean]
    axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
    _plot(axes, mean, index)


def _tick(value: float, _: object = None) -> str:
    text = f"{value:,.5g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"
    return text.replace("-", MINUS)


def _label_x(axes: Axes, axis: str, extent: float, log: bool) -> float:
    """Label the x axis in a unit that suits `extent`; return what to divide the values by."""
    units = AXES[axis][1]
    _, divide, unit = next((u for u in units if extent >= u[0]), units[-1])
    if log:
        _log_x(axes)
    text = f"{unit} exchanged" if axis == "bytes" else unit
    axes.set_xlabel(f"{text} (log scale)" if log else text, color=_MUTED, fontsize=11)
    return divide


def _log_x(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def _far_apart(extents: Sequence[float]) -> bool:
    positive = [extent for extent in extents if extent > 0]
    return len(positive) > 1 and max(positive) > _LOG_FROM * min(positive)


def _series(index: int) -> str:
    return f"#fe00{index % COLOURS:02x}"


def _for_page(svg: str, prefix: str) -> str:
    """Turn a stand-alone SVG file into an element of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}", svg)
    svg = re.sub(r" ?font-family: [^;\"]*;| transform=\"rotate\(-0 [^\"]*\"", "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    for placeholder, variable in _NAMED.items():
        svg = svg.replace(placeholder, f"var({variable})")
    svg = re.sub(r"#fe00([0-9a-f]{2})", lambda m: f"var(--s{int(m[1], 16)})", svg)
    opening = re.search(r'viewBox="([^"]*)"', svg)
    box = opening[1] if opening else "0 0 380 236"
    return f'<svg viewBox="{box}" aria-hidden="true">' + svg[svg.index(">") + 1 :]
