"""From run directories to a comparison people can read: in the terminal, and as one HTML page.

    runs = [read_run(Path("runs/a")), read_run(Path("runs/b"))]
    rich.print(comparison_table(runs))
    write_report(runs, Path("report.html"))

matplotlib and Jinja are imported when a page is written, not when this module is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.table import Table
from rich.text import Text

from heliotrope.errors import ConfigError
from heliotrope.report.compare import labels, shared_name
from heliotrope.report.frontier import frontiers
from heliotrope.report.record import RunRecord, read_run
from heliotrope.report.summary import rows
from heliotrope.report.units import metric_label

__all__ = ["RunRecord", "comparison_table", "frontier_tables", "read_run", "write_report"]


def comparison_table(runs: Sequence[RunRecord]) -> Table:
    """Return a table with a column a run and a row a fact; best metrics and costs are bold.

    Raises `ConfigError` if there is no run.
    """
    _at_least_one(runs)
    name = shared_name(runs) if len(runs) > 1 else None
    title = None if name is None else _plain(name)
    table = Table(
        title=title, title_justify="left", show_edge=False, pad_edge=False, header_style="bold"
    )
    table.add_column("", style="dim", no_wrap=True)
    for label in labels(runs):
        table.add_column(_plain(label), overflow="fold")
    for row in rows(runs):
        cells = [
            _plain(cell, style="bold" if index in row.best else "")
            for index, cell in enumerate(row.cells)
        ]
        table.add_row(_plain(row.label), *cells)
    return table


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
