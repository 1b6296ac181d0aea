"""The page of a report: whole in one file, harmless, and with every view of a run."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import heliotrope
from heliotrope.errors import ConfigError
from heliotrope.report import comparison_table, read_run, write_report
from tests.report_runs import event, make_run, page_of, printed, progress, result, row_of, training


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", mode="distributed")
    b = make_run(tmp_path / "b")
    page = page_of(a, b)
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    references = page.values("href") + page.values("xlink:href") + page.values("src")
    assert all(reference.startswith(("#", "data:")) for reference in references)
    styled = (a / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)", styled)
    assert "prefers-color-scheme: dark" in styled
    repeated = [name for name, count in Counter(page.values("id")).items() if count > 1]
    assert not repeated
    assert page.tags["svg"] > 9


def test_every_chart_is_described_in_words(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path))
    described = [text for text in page.values("aria-label") if "test accuracy" in text]
    assert any("from 0.5000 to 0.8333" in text for text in described)
    assert page.values("role").count("img") == len(page.values("aria-label"))


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)> $x^2_ {{ 7*7 }} &lt; \ud800'


def test_nothing_a_run_says_becomes_markup(tmp_path: Path) -> None:
    def hostile_run(directory: Path) -> Path:
        rows = [{"client": HOSTILE, "examples": HOSTILE, "accuracy": 0.5, HOSTILE: 1.0}]
        events = training(2)
        events[1][f"test/{HOSTILE}"] = 0.5
        events += [
            event("clients", **progress(2), clients=rows),
            event("failure", round=HOSTILE, client=HOSTILE, reason=HOSTILE),
            event("final", confusion_matrix=[[3, 1], [0, 2]], class_names=[HOSTILE, "b"]),
        ]
        outcome = result(HOSTILE, experiment=HOSTILE, status=HOSTILE, seed=HOSTILE)
        outcome["metrics"][f"test/{HOSTILE}"] = 0.5
        outcome["privacy"] = {"epsilon": 1.0, "unit": HOSTILE, "assumptions": {HOSTILE: HOSTILE}}
        outcome["versions"] = {HOSTILE: HOSTILE}
        outcome["git_commit"] = HOSTILE
        outcome["target"] = {"metric": f"test/{HOSTILE}", "value": 0.1, "reached": True}
        make_run(directory, events=events, outcome=outcome)
        text = HOSTILE.replace("\ud800", "")
        config = f"name: {json.dumps(text)}\n{json.dumps(text)}: {json.dumps(text)}\n"
        (directory / "config.yaml").write_text(config)
        return directory

    page = page_of(hostile_run(tmp_path / "a"), make_run(tmp_path / "b"))
    assert not {"script", "img"} & set(page.tags)
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert "&lt;" in page.text


def test_no_bytes_are_said_not_plotted(tmp_path: Path) -> None:
    quiet = result("distributed", bytes_up=0, bytes_down=0)
    events = training(3, "epoch", size=0)
    run = make_run(tmp_path / "a", mode="distributed", events=events, outcome=quiet)
    page = page_of(run)
    assert "exchanged no bytes" in page.text
    assert not [text for text in page.values("aria-label") if "bytes exchanged" in text]
    both = page_of(run, make_run(tmp_path / "b"))
    assert "distributed exchanged no bytes" in both.text
    assert [text for text in both.values("aria-label") if "bytes exchanged" in text]


def test_metrics_of_other_tasks_are_plotted(tmp_path: Path) -> None:
    events = [
        event("evaluate", **progress(i), **{"test/rmse": 3.0 / i, "test/r2": 0.1 * i})
        for i in (1, 2, 3)
    ]
    outcome = result(metrics={"test/rmse": 1.0, "test/r2": 0.3})
    page = page_of(make_run(tmp_path, events=events, outcome=outcome))
    assert any("test RMSE against wall time" in text for text in page.values("aria-label"))
    assert "test accuracy" not in " ".join(page.values("aria-label"))
    assert "Confusion matrices" not in page.text


@pytest.mark.parametrize(
    "canaries", [5, [1], {"planted": "x", "included": 1}, {"planted": 5}, {"included": None}]
)
def test_canaries_that_no_run_has_planted_are_left_out(canaries: object, tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, outcome={**result(), "canaries": canaries}))
    assert "canary" not in page.text


def test_what_is_better_is_what_the_run_says(tmp_path: Path) -> None:
    goal = {"metric": "test/rmse", "value": 2.0, "reached": True}
    ways = {"rmse": "min", "r2": "max"}

    def run_of(name: str, rmse: float, r2: float) -> Path:
        outcome = result(metrics={"test/rmse": rmse, "test/r2": r2}, directions=ways, target=goal)
        rows = [{"client": i, "examples": 9, "rmse": rmse + i, "r2": r2} for i in range(3)]
        events = [event("clients", **progress(1), clients=rows)]
        return make_run(tmp_path / name, events=events, outcome=outcome)

    a, b = run_of("a", 1.0, 0.9), run_of("b", 2.0, 0.95)
    runs = [read_run(a), read_run(b)]
    table = comparison_table(runs)
    bold = [
        [str(getattr(cell, "style", "")) == "bold" for cell in list(column.cells)]
        for column in table.columns
    ]
    labels_of_rows = [str(label) for label in table.columns[0].cells]
    rmse, r2 = labels_of_rows.index("test RMSE"), labels_of_rows.index("test R²")
    assert rmse < r2, "what matters most comes first"
    assert [column[rmse] for column in bold] == [False, True, False]
    assert [column[r2] for column in bold] == [False, False, True]
    assert "test RMSE ≤ 2: reached" in row_of(printed(runs), "target")[0]
    page = page_of(a)
    assert "digits 3 3.0000 3.0000 2.0000 1.0000" in page.text, "the worst has the largest error"


def test_a_run_under_way_says_what_is_better(tmp_path: Path) -> None:
    told = [event("start", mode="federated", directions={"rmse": "min"})]
    told += [event("evaluate", **progress(i), **{"test/rmse": 1 / i}) for i in (1, 2, 3)]
    directory = make_run(tmp_path, events=told, finished=False)
    assert read_run(directory).direction("test/rmse") == "min"
    assert read_run(directory).direction("clients/loss") == "min", "as in runs of old versions"
    assert read_run(directory).direction("test/made_up") is None


def test_divergence_is_said(tmp_path: Path) -> None:
    events = training(4)
    events[-1]["test/loss"] = None  # NaN in strict JSON
    outcome = result(metrics={"test/loss": None})
    page = page_of(make_run(tmp_path, events=events, outcome=outcome))
    assert "1 of 4 values of test loss are not finite" in page.text
    assert "nan (not finite)" in page.text


def test_small_confusion_matrices_are_tables_and_large_ones_pictures(tmp_path: Path) -> None:
    small = event("final", confusion_matrix=[[5, 2], [0, 9]], class_names=["shirt", "coat"])
    page = page_of(make_run(tmp_path / "a", events=[*training(2), small]))
    assert "true shirt, predicted coat: 2 (28.6%)" in page.values("title")
    assert "shirt taken for coat: 2 of 7" in page.text
    size = 60
    counts = [[10 * (i == j) + (j == i + 1) for j in range(size)] for i in range(size)]
    large = event("final", confusion_matrix=counts, class_names=[f"c{i}" for i in range(size)])
    page = page_of(make_run(tmp_path / "b", events=[*training(2), large]))
    assert page.tags["image"] == 1
    assert "c0 taken for c1: 1 of 11" in page.text


def test_what_a_model_says_is_drawn_beside_what_is_true(tmp_path: Path) -> None:
    curves = {
        "roc": {"false_positive_rate": [0.0, 0.2, 1.0], "true_positive_rate": [0.0, 0.8, 1.0]},
        "precision_recall": {"recall": [0.5, 1.0], "precision": [1.0, 0.6]},
        "reliability": {"count": [4, 6], "confidence": [0.6, 0.9], "accuracy": [0.5, 0.95]},
    }
    numbers = {"predictions": {"low": -1.0, "high": 3.0, "counts": [[8, 1], [0, 3]]}}
    page = page_of(
        make_run(tmp_path / "a", name="a", events=[*training(2), event("final", **curves)]),
        make_run(tmp_path / "b", name="b", events=[*training(2), event("final", **numbers)]),
        make_run(tmp_path / "c", name="c"),
    )
    told = page.values("aria-label")
    assert "ROC curve. a: area 0.8000." in told
    assert "precision and recall. a: precision 1.0000 at first, 0.6000 of all." in told
    assert "reliability. a: confidence and accuracy differ by up to 0.1000." in told
    (against,) = [text for text in told if text.startswith("Predictions of b against the true")]
    assert "from -1.0000 to 3.0000: 11 of 12 lie in the same of 2 bins." in against
    assert "Confusion matrices" not in page.text


def test_panels_of_damaged_numbers_are_left_out(tmp_path: Path) -> None:
    odd: list[Any] = [None, [], [1, "x"], [0.5], [2.0, 0.1], {"a": 1}, 3, [[1, 2], [3]], 10**400]
    for n, value in enumerate(odd):
        events = [
            event("final", roc={"false_positive_rate": value, "true_positive_rate": [0.0, 1.0]}),
            event("final", predictions={"low": 0, "high": value, "counts": value}),
            event("final", reliability=value),
        ]
        page = page_of(make_run(tmp_path / str(n), events=[*training(1), *events]))
        assert "Predicted against true" not in page.text
        assert "ROC curve" not in page.text


def test_clients_are_ranked_from_the_worst(tmp_path: Path) -> None:
    events = training(2)
    for step in (1, 2):
        rows = [
            {"client": i, "examples": 20 + i, "accuracy": (50 + i) / 100 + 0.1 * step, "loss": 1.0}
            for i in range(11)
        ]
        events.append(event("clients", **progress(step), clients=rows, **{"clients/accuracy": 0.7}))
    page = page_of(make_run(tmp_path, events=events))
    assert "digits 11 0.7000 0.7100 0.7500 0.8000 0.7000" in page.text
    assert "digits 0 20 0.7000 digits 1 21 0.7100" in page.text


def test_failures_are_listed_up_to_a_limit(tmp_path: Path) -> None:
    lost = [event("failure", round=i, client=i, reason=f"reason {i}") for i in range(120)]
    rank = event("failure", epoch=2, rank=1, reason="killed")
    page = page_of(make_run(tmp_path, events=[rank, *training(1), *lost]))
    assert "epoch 2 rank 1 killed" in page.text
    assert "reason 98 " in page.text
    assert "reason 99 " not in page.text
    assert "The first 100 of 121" in page.text


def test_only_what_differs_in_the_configs_is_tabulated(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", lr=0.1), make_run(tmp_path / "b", lr=0.5)
    with (b / "config.yaml").open("a") as file:
        file.write("extra: {deep: true}\n")
    text = page_of(a, b).text
    table = text[text.index("The keys in which") : text.index("config.yaml")]
    assert "optimizer.lr 0.1 0.5" in table
    assert "extra.deep not set true" in table
    assert "optimizer.name" not in table
    assert "the same, key for key" in page_of(a, a).text


def test_a_failed_report_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(make_run(tmp_path / "run"))
    output = tmp_path / "new" / "report.html"
    write_report([run], output)
    before = output.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(ConfigError, match="no space"):
        write_report([run], output)
    assert output.read_bytes() == before
    assert list(output.parent.iterdir()) == [output]


def test_a_directory_is_not_an_output(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path))
    with pytest.raises(ConfigError, match="is a directory"):
        write_report([run], tmp_path)


def test_the_users_matplotlib_settings_neither_change_nor_matter(tmp_path: Path) -> None:
    import matplotlib as mpl

    run = read_run(make_run(tmp_path))
    plain = write_report([run], tmp_path / "a.html").read_bytes()
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "text.usetex": True}):
        before = dict(mpl.rcParams)
        assert write_report([run], tmp_path / "b.html").read_bytes() == plain
        assert dict(mpl.rcParams) == before


def test_importing_the_report_imports_no_plotting(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [n for n in sys.modules if n.startswith("heliotrope.report")]
    monkeypatch.setattr(heliotrope, "report", heliotrope.report)  # put back at the end
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    for name in ("matplotlib", "jinja2", "omegaconf", "numpy"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it now fails
    assert importlib.import_module("heliotrope.report").write_report


def test_what_each_client_has_spent_is_a_table_and_no_chart(tmp_path: Path) -> None:
    spent = {"epsilon": 2.5, "delta": 1e-3, "examples": 215, "releases": 270}
    other = {**spent, "epsilon": 3.25, "examples": 88}
    claim = {"epsilon": 3.25, "delta": 1e-3, "unit": "record", "accountant": "PLD"}
    claim["clients"] = {"Cleveland": spent, HOSTILE: other, "broken": 7, "nothing": {}}
    bounds = {"privacy/epsilon_rdp": 4.0, "privacy/epsilon_rdp/Cleveland": 3.0}
    events = [{**e, **bounds} if e["event"] == "train" else e for e in training(3)]
    done = make_run(tmp_path / "done", events=events, outcome=result(privacy=claim))
    page = page_of(done)
    assert "what each client has spent" in page.text
    assert "3.25 0.001 88 270 Cleveland 2.5 0.001 215 270" in page.text  # who spent most first
    assert "epsilon_rdp/Cleveland" not in page.text
    assert not {"script", "img"} & set(page.tags)

    going = page_of(make_run(tmp_path / "going", events=events, finished=False))
    assert "Cleveland ≤ 3" in going.text

    many = {f"hospital {n}": {**spent, "epsilon": n / 10} for n in range(30)}
    outcome = result(privacy={**claim, "clients": many})
    text = page_of(make_run(tmp_path / "many", outcome=outcome)).text
    assert "hospital 29 2.9" in text
    assert "10 others are in result.json" in text
    assert "what each client has spent" not in page_of(make_run(tmp_path / "plain")).text
