"""Runs that differ only in their seed are one line of tables, one curve with a band."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from heliotrope.report import RunRecord, read_run
from heliotrope.report.replicates import Average, averaged, replicates
from tests.report_runs import Page, make_run, page_of, printed, result, row_of

Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Return what makes a run of a seed with an accuracy, in a numbered directory of a sweep."""

    def make(seed: int, accuracy: float, lr: float = 0.1, *, finished: bool = True) -> Path:
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        metrics = {"test/accuracy": accuracy, "test/loss": 1 - accuracy}
        outcome = result(seed=seed, metrics=metrics)
        return make_run(directory, seed=seed, lr=lr, outcome=outcome, finished=finished)

    return make


def records(directories: Sequence[Path]) -> list[RunRecord]:
    return [read_run(directory) for directory in directories]


def test_six_runs_of_two_settings_are_two_columns(made: Made) -> None:
    seed = int(np.random.default_rng().integers(2**31))
    scores = np.random.default_rng(seed).uniform(0.5, 1, size=(2, 3)).round(4)
    runs = records(
        [made(s, scores[row, s], lr) for s in range(3) for row, lr in enumerate((0.1, 0.5))]
    )
    text = printed(runs, 100)
    told = [f"{np.mean(row):.4f} ± {statistics.stdev(row):.4f}" for row in scores.tolist()]
    assert row_of(text, "test accuracy") == told, f"seed {seed}"
    assert row_of(text, "seed") == ["0, 1, 2", "0, 1, 2"]
    assert "lr=0.1" in text
    assert max(map(len, text.splitlines())) <= 100


def test_many_settings_have_a_row_each_and_the_columns_that_differ(made: Made) -> None:
    runs = records(
        [made(s, 0.5 + lr / 2 + s / 100, lr) for lr in (0.1, 0.2, 0.3, 0.4) for s in (1, 2)]
    )
    text = printed(runs, 100)
    shown = [line.split("│") for line in text.splitlines() if "│" in line]
    assert [line[0].split() for line in shown] == [[str(n), str(n + 1)] for n in (0, 2, 4, 6)]
    assert [line[1].strip() for line in shown] == ["0.1", "0.2", "0.3", "0.4"]
    assert "0.5650 ± 0.0071" in text
    assert "parameters" not in text
    assert "federated" not in text, "the mode is the same for all"
    assert max(map(len, text.splitlines())) <= 100


def test_columns_without_room_are_named(made: Made) -> None:
    runs = records([made(1, 0.5 + lr / 2, lr) for lr in (0.1, 0.2, 0.3, 0.4)])
    narrow = " ".join(printed(runs, 16).split())
    assert "in the report, too: test accuracy" in narrow
    assert "0.5500" not in narrow
    assert "in the report, too:" not in printed(runs, 100)


def test_runs_are_put_together_only_if_they_are_samples_of_one_setting(made: Made) -> None:
    paths = [
        made(1, 0.5),
        made(1, 0.6),
        made(2, 0.7),
        made(3, 0.8, finished=False),
        made(4, 0.9, 0.2),
    ]
    found = [line.positions for line in replicates(records(paths))]
    assert found == [(0, 2), (1,), (3,), (4,)]


def test_a_run_that_diverged_does_not_lend_the_others_a_deviation(made: Made) -> None:
    runs = records([made(1, 0.5), made(2, float("nan"))])
    assert row_of(printed(runs), "test accuracy") == ["nan (not finite)"]


def test_values_that_no_chart_can_show_have_a_mean_all_the_same() -> None:
    assert Average.of([2.0**101, 3 * 2.0**101]) == Average(2.0**102, None)
    assert Average.of([1.0, float("inf"), None]) == Average(float("inf"), None)


def test_the_page_draws_bands_and_says_what_they_are(made: Made) -> None:
    alone = page_of(made(1, 0.8))
    several = page_of(made(2, 0.7), made(3, 0.9))
    assert "0.8000 ± 0.1414" in several.text
    assert "in a band of one standard deviation" in several.text
    assert "standard deviation" not in alone.text
    assert "completed, 2 seeds" in several.text
    assert drawn_fills(several) > drawn_fills(alone)


def drawn_fills(page: Page) -> int:
    return sum("FillBetween" in name for name in page.values("id"))


def test_the_page_has_a_row_a_line_beyond_three(made: Made) -> None:
    page = page_of(*(made(1, 0.5 + lr / 2, lr) for lr in (0.1, 0.2, 0.3, 0.4)))
    assert "lr=0.4 federated completed 1 0.7000 +0.1500" in page.text


def test_a_mean_curve_goes_as_far_as_all_do() -> None:
    seed = int(np.random.default_rng().integers(2**31))
    draw = np.random.default_rng(seed)
    curves = [draw.normal(size=(length, 2)).tolist() for length in (3, 5, 4)]
    found = averaged([[(x, y) for x, y in curve] for curve in curves])
    expected = np.array([curve[:3] for curve in curves])
    assert np.allclose([x for x, _, _ in found], expected[:, :, 0].mean(0)), f"seed {seed}"
    assert np.allclose([y for _, y, _ in found], expected[:, :, 1].mean(0)), f"seed {seed}"
    assert np.allclose([d for _, _, d in found], expected[:, :, 1].std(0, ddof=1)), f"seed {seed}"
