"""Reports: what a reader is told about runs that finished, crashed, or mean harm."""

from __future__ import annotations

import importlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import heliotrope
from heliotrope.errors import ConfigError
from heliotrope.report import RunRecord, comparison_table, read_run, write_report
from heliotrope.report.compare import labels

CONFIG = """\
name: {name}
seed: {seed}
optimizer: {{name: sgd, lr: {lr}}}
federated:
  rounds: 3
  strategy: {{name: {strategy}}}
target: {{metric: test/accuracy, value: 0.8, stop: false}}
"""


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "time": 1_760_000_000.0, **fields}


def progress(step: int, unit: str = "round", size: int = 1_000_000) -> dict[str, Any]:
    return {
        unit: step,
        "steps": 10 * step,
        "examples_seen": 600 * step,
        "seconds": 2.5 * step,
        "bytes_up": size * step,
        "bytes_down": size * step,
    }


def training(steps: int, unit: str = "round", size: int = 1_000_000) -> list[dict[str, Any]]:
    events = []
    for step in range(1, steps + 1):
        done = progress(step, unit, size)
        score = {"test/accuracy": 1 - 0.5 / step, "test/loss": 2.0 / step}
        events.append(event("train", **done, **{"train/loss": 2.5 / step}))
        events.append(event("evaluate", **done, **score))
    return events


def result(mode: str = "federated", **fields: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "mode": mode,
        "experiment": "digits",
        "seed": 7,
        "status": "completed",
        "metrics": {"test/accuracy": 0.8333, "test/loss": 0.6667, "test/macro_f1": 0.81},
        "rounds" if mode == "federated" else "epochs": 3,
        "examples_seen": 1800,
        "wall_seconds": 192.0,
        "train_seconds": 90.0,
        "examples_per_second": 20.0,
        "bytes_up": 3_000_000,
        "bytes_down": 3_000_000,
        "privacy": None,
        "parameters": 4810,
        "versions": {"python": "3.11.7"},
        "git_commit": "0123abc",
        **fields,
    }


def make_run(
    directory: Path,
    *,
    mode: str = "federated",
    name: str = "digits",
    seed: int = 7,
    lr: float = 0.1,
    strategy: str = "fedavg",
    events: Sequence[dict[str, Any]] | None = None,
    outcome: dict[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    config = CONFIG.format(name=json.dumps(name), seed=seed, lr=lr, strategy=strategy)
    (directory / "config.yaml").write_text(config)
    unit = "round" if mode == "federated" else "epoch"
    told = [event("start", mode=mode, name=name, seed=seed)]
    told += training(3, unit) if events is None else events
    lines = "".join(json.dumps(line) + "\n" for line in told)
    (directory / "metrics.jsonl").write_text(lines)
    if finished:
        content = outcome or result(mode, experiment=name, seed=seed)
        (directory / "result.json").write_text(json.dumps(content))
    return directory


class Page(HTMLParser):
    """What a browser would make of a page: its tags, attributes and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self._text: list[str] = []
        self._hidden = 0
        self.feed(html)
        self.text = " ".join(" ".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(key, value or "") for key, value in attrs]
        self._hidden += tag in ("style", "title")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "title")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._text.append(data)

    def values(self, key: str) -> list[str]:
        return [value for name, value in self.attributes if name == key]


def page_of(*directories: Path) -> Page:
    runs = [read_run(directory) for directory in directories]
    output = directories[0] / "report.html"
    assert write_report(runs, output) == output
    return Page(output.read_text(encoding="utf-8"))


def printed(runs: Sequence[RunRecord]) -> str:
    console = Console(width=200, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(comparison_table(runs))
    return capture.get()


def row_of(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.strip().startswith(label))
    return [cell.strip() for cell in line.split("│")[1:]]


# --- reading ------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [[], ["config.yaml"], ["metrics.jsonl"]])
def test_a_directory_without_a_run_is_named(tmp_path: Path, present: list[str]) -> None:
    for name in present:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match="not a run directory") as caught:
        read_run(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 2
    for name in present:
        assert f"{name} not found" not in str(caught.value)


def test_a_finished_run_is_taken_at_its_results_word(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path))
    assert (run.mode, run.name, run.seed, run.status) == ("federated", "digits", 7, "completed")
    assert run.metrics["test/accuracy"] == 0.8333
    assert run.quantity("wall_seconds") == 192.0
    assert run.bytes_exchanged == 6_000_000
    assert not run.notes


def test_a_crashed_run_is_reported_from_its_events(tmp_path: Path) -> None:
    directory = make_run(tmp_path, finished=False)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"event": "evaluate", "round": 4, "test/accu')
    run = read_run(directory)
    assert run.metrics["test/accuracy"] == pytest.approx(1 - 0.5 / 3)
    assert run.quantity("rounds") == 3
    assert run.quantity("examples_seen") == 1800
    assert run.quantity("wall_seconds") == 7.5
    text = page_of(directory).text
    assert "no result.json: the run did not finish" in text
    assert "the last line is incomplete" in text
    assert "no privacy guarantee recorded" in text


def test_a_run_that_has_only_begun_can_be_reported(tmp_path: Path) -> None:
    directory = make_run(tmp_path, events=[], finished=False)
    assert "Nothing has been measured yet" in page_of(directory).text
    (directory / "metrics.jsonl").write_text("")
    page_of(directory)


def test_damage_is_told_and_does_not_stop_the_report(tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    lines = (directory / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_bytes(lines[0] + b"\xff\xfe{]\n[1]\n" + b"".join(lines[1:]))
    (directory / "result.json").write_text("{")
    (directory / "config.yaml").write_text("a: [")
    text = page_of(directory).text
    assert "2 unreadable line(s)" in text
    assert "result.json cannot be read" in text
    assert "config.yaml cannot be read" in text
    assert "0.8333" in text


def test_anything_in_any_field_can_be_reported(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        3,
        1e300,
        float("nan"),
        float("inf"),
        "x",
        "",
        [],
        [1],
        {},
        {"a": 1},
    ]
    odd += [[[1, 2], [3]], [[1, -1], [0, 2]], [{"client": 1, "accuracy": 0.5}], [None, {}], 10**400]
    for attempt in range(12):
        client = {"client": 0, "examples": 9, "accuracy": 0.5}
        events = [*training(2), event("clients", **progress(2), clients=[client, {**client}])]
        events.append(event("final", confusion_matrix=[[1, 0], [0, 1]], class_names=["a", "b"]))
        events += [event("failure", round=1, client=2, reason="r"), event("end", status="failed")]
        privacy = {"epsilon": 1.0, "delta": 1e-5, "unit": "client", "assumptions": ["a"]}
        goal = {"metric": "test/accuracy", "value": 0.8, "reached": True, "seconds": 3}
        outcome = result(target=goal, privacy=privacy)
        for record in (outcome["metrics"], goal, privacy, client, outcome, *events):
            for key in draw.sample(list(record), k=2):
                record[key] = draw.choice(odd)
        finished = draw.random() < 0.5
        directory = tmp_path / str(attempt)
        page_of(make_run(directory, events=events, outcome=outcome, finished=finished))
        printed([read_run(directory)])


# --- the table ----------------------------------------------------------------------------


def test_the_table_sets_the_modes_side_by_side(tmp_path: Path) -> None:
    inline = result("distributed", bytes_up=0, bytes_down=0)
    a = read_run(make_run(tmp_path / "a", mode="distributed", outcome=inline))
    b = read_run(make_run(tmp_path / "b"))
    text = printed([a, b])
    assert row_of(text, "mode") == ["distributed", "federated"]
    assert row_of(text, "test accuracy") == ["0.8333", "0.8333"]
    assert row_of(text, "trained for") == ["3 epochs", "3 rounds"]
    assert row_of(text, "examples seen") == ["1,800", "1,800"]
    assert row_of(text, "wall time") == ["3 min 12 s", "3 min 12 s"]
    assert row_of(text, "bytes exchanged") == ["0 B", "6 MB"]
    assert row_of(text, "parameters") == ["4,810", "4,810"]


def test_privacy_is_stated_or_denied_never_implied(tmp_path: Path) -> None:
    claims: list[Any] = [
        None,
        {"epsilon": 3.123456, "delta": 1e-5, "unit": "client", "assumptions": ["honest server"]},
        {"epsilon": None, "delta": 1e-5},
        {"epsilon": float("inf"), "delta": 1e-5},
    ]
    runs = [
        read_run(make_run(tmp_path / str(i), outcome=result(privacy=claim)))
        for i, claim in enumerate(claims)
    ]
    none, some, *infinite = row_of(printed(runs), "privacy")
    assert none == "no privacy guarantee"
    assert some == "ε = 3.123, δ = 1e-05, per client"
    assert all(cell.startswith("no privacy guarantee") for cell in infinite)
    assert "honest server" in page_of(tmp_path / "1").text


def test_the_target_comes_from_the_result_or_else_from_the_curve(tmp_path: Path) -> None:
    goal = {"metric": "test/accuracy", "value": 0.8, "reached": True, "rounds": 3, "seconds": 7.5}
    missed = {"metric": "test/loss", "value": 0.1, "reached": False}
    runs = [
        read_run(make_run(tmp_path / "a", outcome=result(target=goal))),
        read_run(make_run(tmp_path / "b", outcome=result(target=missed))),
        read_run(make_run(tmp_path / "c", finished=False)),
    ]
    assert row_of(printed(runs), "target") == [
        "test accuracy ≥ 0.8: reached after 3 rounds, 7.50 s",
        "test loss ≤ 0.1: not reached",
        "test accuracy ≥ 0.8: reached after 1,800 examples",
    ]


def test_a_run_cut_short_is_not_called_the_cheapest(tmp_path: Path) -> None:
    whole, cut = make_run(tmp_path / "a"), make_run(tmp_path / "b", finished=False)
    runs = [read_run(whole), read_run(cut)]
    table = comparison_table(runs)
    styles = {
        str(label): [str(getattr(list(column.cells)[i], "style", "")) for column in table.columns]
        for i, label in enumerate(table.columns[0].cells)
    }
    assert "bold" not in styles["wall time"]


def test_names_cannot_style_the_terminal(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, name="[bold red]x[/] \x1b[2J"))
    text = printed([run])
    assert "[bold red]x[/]" in text
    assert "\x1b" not in text


def test_no_runs_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one run"):
        comparison_table([])


# --- labels -------------------------------------------------------------------------------


def test_labels_say_what_differs(tmp_path: Path) -> None:
    def of(**settings: Any) -> RunRecord:
        name = "-".join(map(str, settings.values()))
        return read_run(make_run(tmp_path / name, **settings))

    assert labels([of(name="a"), of(name="b")]) == ["a", "b"]
    assert labels([of(mode="federated"), of(mode="distributed")]) == ["federated", "distributed"]
    sweep = [of(strategy=s, lr=lr) for s in ("fedavg", "fedadam") for lr in (0.1, 0.2)]
    assert labels(sweep) == [
        "strategy=fedavg, lr=0.1",
        "strategy=fedavg, lr=0.2",
        "strategy=fedadam, lr=0.1",
        "strategy=fedadam, lr=0.2",
    ]


def test_labels_are_distinct_even_for_one_run_given_twice(tmp_path: Path) -> None:
    a = read_run(make_run(tmp_path / "x" / "0"))
    b = read_run(make_run(tmp_path / "y" / "0"))
    other = read_run(make_run(tmp_path / "z", name="#1"))
    told = labels([a, a, b, other])
    assert len(set(told)) == 4
    assert all(told)


# --- the page -----------------------------------------------------------------------------


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
