"""Parallel coordinates of a sweep: each run a line across its settings to what it reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliotrope.report import read_run
from heliotrope.report.coordinates import Coordinates, coordinates
from heliotrope.report.replicates import replicates
from tests.report_runs import make_run, page_of, result

SETTINGS = [("fedavg", 0.001, 0.7), ("fedadam", 0.1, 0.9), ("fedavg", 0.01, 0.8)]


def made(folder: Path, *settings: tuple[str, float, float]) -> list[Path]:
    directories = []
    for number, (strategy, lr, accuracy) in enumerate(settings):
        outcome = result(metrics={"test/loss": 1.0, "test/accuracy": accuracy})
        run = make_run(folder / str(number), strategy=strategy, lr=lr, outcome=outcome)
        directories.append(run)
    return directories


def drawn(folder: Path, *settings: tuple[str, float, float]) -> Coordinates | None:
    return coordinates(replicates([read_run(each) for each in made(folder, *settings)]))


def heights(found: Coordinates, line: int) -> list[float]:
    return [float(corner.split(",")[1]) for corner in found.lines[line][1].split()]


def test_lines_cross_the_axes_where_their_values_are(tmp_path: Path) -> None:
    found = drawn(tmp_path, *SETTINGS)
    assert found is not None
    assert [axis.name for axis in found.axes] == ["strategy", "lr", "test accuracy"]
    first, second, third = (heights(found, line) for line in range(3))
    assert first[0] == third[0] != second[0]
    assert (first[1], second[1]) == (found.bottom, found.top), "the highest rate is at the top"
    middle = (found.top + found.bottom) / 2
    assert third[1:] == pytest.approx([middle, middle]), "rates that lie far apart: logarithmic"
    assert (found.best, found.reached) == (1, "0.9000")
    assert [text for _, text in found.axes[1].ticks] == ["0.1", "0.01", "0.001"]


def test_a_run_without_the_metric_has_no_line(tmp_path: Path) -> None:
    found = drawn(tmp_path, *SETTINGS, ("fedavg", 1.0, float("nan")))
    assert found is not None
    assert [index for index, _ in found.lines] == [0, 1, 2]


def test_one_line_or_no_setting_that_differs_is_no_drawing(tmp_path: Path) -> None:
    assert drawn(tmp_path, SETTINGS[0]) is None
    assert drawn(tmp_path, SETTINGS[0], SETTINGS[0]) is None


def test_the_page_names_the_best_run_and_escapes_what_a_config_says(tmp_path: Path) -> None:
    evil = '"</text><script>alert(1)</script>$x^2$"'
    page = page_of(*made(tmp_path, *SETTINGS, (evil, 0.1, 0.5)))
    assert "Best test accuracy: 0.9000 , strategy=fedadam, lr=0.1" in page.text
    assert page.tags["script"] == 0
    assert page.tags["polyline"] == 4
