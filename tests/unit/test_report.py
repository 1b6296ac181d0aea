"""Reports: what a reader is told about runs that finished, crashed, or mean harm."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from heliotrope.errors import ConfigError
from heliotrope.report import RunRecord, comparison_table, read_run
from heliotrope.report.compare import labels
from tests.report_runs import event, make_run, page_of, printed, progress, result, row_of, training

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
    none, some, *infinite = row_of(printed(runs[:3]), "privacy")
    infinite += row_of(printed(runs[3:]), "privacy")
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
