"""From run directories to a comparison people can read: in the terminal, and as one HTML page.

    runs = [read_run(Path("runs/a")), read_run(Path("runs/b"))]
    rich.print(comparison_table(runs))
    write_report(runs, Path("report.html"))

matplotlib and Jinja are imported when a page is written, not when this module is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from heliotrope.errors import ConfigError
from heliotrope.report.compare import differences, labels, shared_name, short_key, telling
from heliotrope.report.frontier import compared_by, frontiers
from heliotrope.report.record import RunRecord, read_run
from heliotrope.report.replicates import Replicates, replicates
from heliotrope.report.summary import Row, rows
from heliotrope.report.units import metric_label

__all__ = ["RunRecord", "comparison_table", "frontier_tables", "read_run", "write_report"]

_MOST_COLUMNS = 3  # lines that have a column each
_BETWEEN = 3  # characters between two columns


def comparison_table(runs: Sequence[RunRecord], width: int | None = None) -> Table:
    """Return a table of the facts of runs; best metrics and costs are bold.

    Runs that differ only in seed or fold are one line: mean and sample standard deviation. Up to
    three lines have a column each, and a row a fact. More have a row each, and a column for what
    differs among them: as many, of the first importance first, as `width` characters hold.

    Raises `ConfigError` if there is no run.
    """
    _at_least_one(runs)
    lines = replicates(runs)
    shown = [line.representative for line in lines]
    name = shared_name(shown) if len(runs) > 1 else None
    title = None if name is None else _plain(name)
    table = Table(
        title=title, title_justify="left", show_edge=False, pad_edge=False, header_style="bold"
    )
    if len(lines) > _MOST_COLUMNS:
        _fill_by_row(table, lines, width)
        return table
    table.add_column("", style="dim", no_wrap=True)
    for label in labels(shown):
        table.add_column(_plain(label), overflow="fold")
    for row in rows(lines):
        table.add_row(_plain(row.label), *(_cell(row, index) for index in range(len(lines))))
    return table


def _fill_by_row(table: Table, lines: Sequence[Replicates], width: int | None) -> None:
    """Fill the table with a row a line, and say in its caption which columns had no room."""
    columns = [Row("run", _directories(lines), [""] * len(lines)), *_settings(lines)]
    facts = rows(lines)
    metric = compared_by([run for line in lines for run in line.runs])
    main = next((row for row in facts if metric and row.label == metric_label(metric)), None)
    columns += [row for row in facts if row is main or len(set(row.cells)) > 1]
    left, omitted = math.inf if width is None else float(width), []
    for row in columns:
        words = [*row.label.split(), *row.cells]
        left -= max(map(cell_len, words)) + _BETWEEN
        if left < -_BETWEEN:
            omitted.append(row.label)
            continue
        table.add_column(_plain(row.label), overflow="fold")
    kept = columns[: len(table.columns)]
    for index in range(len(lines)):
        table.add_row(*(_cell(row, index) for row in kept))
    if omitted:
        table.caption = _plain(f"in the report, too: {', '.join(omitted)}", "dim")
        table.caption_justify = "left"


def _settings(lines: Sequence[Replicates]) -> list[Row]:
    """Return the keys in which the configs differ, named shortly where that is clear."""
    found = telling(differences([line.representative for line in lines]))
    short = [short_key(key) for key, _ in found]
    return [
        Row(key if short.count(name) > 1 else name, values, [""] * len(values))
        for (key, values), name in zip(found, short, strict=True)
        if key not in ("seed", "fold") or all(len(line.runs) == 1 for line in lines)
    ]


def _directories(lines: Sequence[Replicates]) -> list[str]:
    """Return where the runs of each line are, below the folder that all share."""
    parents = [str(run.directory.resolve().parent) for line in lines for run in line.runs]
    common = Path(os.path.commonpath(parents))
    names = [
        [str(run.directory.resolve().relative_to(common)) for run in line.runs] for line in lines
    ]
    return [" ".join(few) if len(few) <= 3 else f"{few[0]} … {few[-1]}" for few in names]


def _cell(row: Row, index: int) -> Text:
    return _plain(row.cells[index], style="bold" if index in row.best else "")


def frontier_tables(runs: Sequence[RunRecord]) -> list[tuple[Text, Table]]:
    """Return a title and table a unit of privacy: runs by epsilon, and who is on the frontier."""
    found, named = frontiers(runs), labels(runs)
    tables = []
    for each in found:
        heads = ("epsilon", "delta", metric_label(each.metric), "run", "")
        table = Table(show_edge=False, pad_edge=False, header_style="bold")
        for head in heads:
            table.add_column(head, overflow="fold")
        for line in each.lines(named):
            style = "bold" if line[-1] else ""  # on the frontier
            table.add_row(*(_plain(cell, style) for cell in line))
        tables.append((_plain(each.title, "italic"), table))
    return tables


def write_report(runs: Sequence[RunRecord], output: Path) -> Path:
    """Write one self-contained HTML page about one run or several, and return its path.

    The page appears whole or not at all. Raises `ConfigError` if there is no run, or if
    `output` is a directory.
    """
    from heliotrope.report.page import render

    _at_least_one(runs)
    output = Path(output)
    if output.is_dir():
        raise ConfigError(f"{output} is a directory. Name a file, e.g. {output / 'report.html'}.")
    page = render(runs)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8", errors="replace")
        temporary.replace(output)
    except OSError as error:
        raise ConfigError(
            f"The report cannot be written to {output}: {error.strerror or error}. Set output=FILE."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return output


def _plain(text: str, style: str = "") -> Text:
    """Return text in which neither console markup nor terminal escapes have an effect."""
    return Text("".join(c if c.isprintable() else "?" for c in text), style=style)


def _at_least_one(runs: Sequence[RunRecord]) -> None:
    if not runs:
        raise ConfigError("A report needs at least one run. Name a run directory.")
