"""`heliotrope runs`: runs found with their states, selected, compared, and removed with care."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from heliotrope import cli
from heliotrope.commands.conditions import parse_condition
from heliotrope.runs.config_values import MISSING, config_values
from heliotrope.runs.finding import find_runs
from heliotrope.system.locks import Holder, lock
from tests.report_runs import event, make_run, result, training


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with a run of each state, and what is none."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    make_run(root / "good", lr=0.5)
    make_run(root / "sweep" / "0", seed=1, outcome=result(seed=1, wall_seconds=7.0))
    killed = make_run(root / "sweep" / "1", seed=2, finished=False)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"event": "eval')
    ended = [*training(1), event("end", status="failed", reason="out of memory")]
    make_run(root / "failed", events=ended, finished=False)
    (root / "begun").mkdir()
    (root / "begun" / ".lock").write_text("")
    damaged = make_run(root / "damaged")
    (damaged / "result.json").write_text("{")
    (root / "photos").mkdir()
    (root / "photos" / "cat.jpg").write_bytes(b"\xff\xd8")
    (root / "other").mkdir()
    (root / "other" / "config.yaml").write_text("site: blog\n")
    return root


def _states(root: Path) -> dict[str, str]:
    return {str(run.path.relative_to(root)): run.state for run in find_runs(root)}


def _printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["runs", *words]) == 0
    return capsys.readouterr().out


def _refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["runs", *words]) == 2
    return capsys.readouterr().err


def test_every_directory_has_its_state(runs: Path) -> None:
    assert _states(runs) == {
        "good": "completed",
        "sweep/0": "completed",
        "sweep/1": "interrupted",
        "failed": "failed",
        "begun": "never begun",
        "damaged": "broken",
        "photos": "not a run",
        "other": "not a run",
    }


def test_a_job_that_a_sweep_or_cross_validation_has_planned_is_never_begun(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = runs / "sweep" / "2"
    planned.mkdir()
    (planned / "overrides.json").write_text('{"overrides": ["seed=3", "a=1"], "swept": ["seed=3"]}')
    assert _states(runs)["sweep/2"] == "never begun"
    assert "seed=3 a=1" in _printed(capsys, "where=state='never begun'")


def test_a_run_is_running_while_its_lock_is_held(runs: Path) -> None:
    with (runs / "failed" / ".lock").open("a+") as file:
        assert lock(file)
        Holder.this().write(file)
        assert _states(runs)["failed"] == "running"
    assert _states(runs)["failed"] == "failed"  # its holder lives on


def test_damage_is_told_in_its_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("bomb", "a: &a [1]\nb: " + "[" * 5000), ("binary", "\0\x01")):
        make_run(runs / name)
        (runs / name / "config.yaml").write_text(text)
    make_run(runs / "pipe")
    (runs / "pipe" / "result.json").unlink()
    os.mkfifo(runs / "pipe" / "result.json")
    make_run(runs / "linked")
    (runs / "linked" / "config.yaml").unlink()
    (runs / "linked" / "config.yaml").symlink_to("/etc/passwd")
    lines = _printed(capsys).splitlines()
    for name in ("bomb", "binary", "pipe", "linked", "damaged"):
        line = next(line for line in lines if line.startswith(f"{name} "))
        assert "broken" in line
        assert "cannot be read" in line


def test_the_table_tells_what_sets_runs_apart(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steering = result(status="done\x1b[2J", mode="federated\n")
    make_run(runs / "odd\x1b[31m\nname", name="new\x1b[2J", outcome=steering)
    out = _printed(capsys)
    lines = out.splitlines()
    assert len(lines) == 1 + 9
    assert "\x1b" not in out
    (line,) = (line for line in lines if line.startswith("sweep/0"))
    assert "test/accuracy 0.8333" in line
    assert line.endswith("seed=1 optimizer.lr=0.1")


def test_the_overrides_of_a_run_are_told_instead(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["experiment=digits", "hydra.run.dir=here", "federated/strategy=fedadam", "seed=1"]
    for name, text in (
        ("sweep/0", json.dumps({"overrides": typed, "swept": ["seed=1"]})),
        ("sweep/1", json.dumps({"overrides": [f"a{i}=\x1b[2J" for i in range(8)], "swept": []})),
        ("good", json.dumps({"overrides": 7})),
        ("failed", "["),
    ):
        (runs / name / "overrides.json").write_text(text)
    out = _printed(capsys)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["sweep/0"].endswith("  seed=1 federated/strategy=fedadam")
    assert lines["sweep/1"].endswith("[2J and 2 more")
    assert "\x1b" not in out
    assert lines["good"].endswith("  optimizer.lr=0.5")  # as those differ that hold none
    assert lines["failed"].endswith("  optimizer.lr=0.1")


def test_where_and_sort(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def names(*words: str) -> list[str]:
        return [line.split()[0] for line in _printed(capsys, *words).splitlines()[1:]]

    assert names("where=test/accuracy>0.8 and optimizer.lr<0.2", "sort=seed") == [
        *("sweep/0", "sweep/1", "damaged")
    ]
    assert names("where=state='never begun' or (seed=1 or seed=2)", "sort=-seed") == [
        *("sweep/1", "sweep/0", "begun")
    ]
    assert names("where=state=completed", "sort=wall_seconds") == ["sweep/0", "good"]
    assert names("runs/sweep/1", "where=mode!=distributed") == ["runs/sweep/1"]
    assert "no runs where that holds" in _printed(capsys, "where=state=running")


def test_there_are_none_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _printed(capsys, "where=seed=1") == "no runs where that holds below runs\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["where=optimiser.lr>0"], "Did you mean 'optimizer.lr'?"),
        (["sort=wall_second"], "Did you mean 'wall_seconds'?"),
        (["where=seed"], "an operator is missing"),
        (["where=age>1d"], "'1d' after 'age >' is no number (an age is in seconds)"),
        (["where=(seed=1"], "a ) is missing"),
        (["where=seed=1 seed"], "'seed' is one too many"),
        (["where=" + "(" * 5000], "more than 200 words"),
        (["where=__import__('os').system('true')"], "is no"),
        (["wher=seed=1"], "Did you mean 'where'?"),
        (["absent"], "absent is no directory"),
        (["rm"], "needs where=CONDITION"),
        (["rm", "where=seed=1", "confirm=maybe"], "neither true nor false"),
        (["diff", "runs/good"], "two run directories"),
    ],
)
def test_what_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert said in _refused(capsys, *words)
    assert len(_states(runs)) == 8


def test_conditions_hold_as_those_of_python() -> None:
    seed = random.randrange(1 << 32)
    generator = random.Random(seed)
    values = {"a": 1, "b": 2.5, "c": "red", "d": None, "e": True}
    written = {"a": "1", "b": "2.5", "c": "'red'", "d": "null", "e": "true"}
    python = {"=": "==", "or": "or", "and": "and"}

    def drawn(depth: int) -> tuple[str, bool]:
        if depth == 0 or generator.random() < 0.3:
            name, sign = generator.choice("ab"), generator.choice(["<", "<=", ">", ">=", "!=", "="])
            number = generator.choice([0, 1, 2, 2.5, 3])
            expected = eval(f"{values[name]} {python.get(sign, sign)} {number}")  # noqa: S307
            if generator.random() < 0.4:
                name, sign, other = generator.choice("cde"), generator.choice("=!"), "'blue'"
                same = generator.random() < 0.5
                text = f"{name}{sign.replace('!', '!=')}{written[name] if same else other}"
                return text, same == (sign == "=")
            return f"{name} {sign}{number}", expected
        (left, first), (right, second) = drawn(depth - 1), drawn(depth - 1)
        word = generator.choice(["and", "or"])
        holds = (first and second) if word == "and" else (first or second)
        return f"({left}) {word} ({right})", holds

    for _ in range(200):
        text, expected = drawn(3)
        held = parse_condition(text).holds(lambda name: values.get(name, MISSING))
        assert held == expected, (seed, text)
    assert parse_condition("a=0 and a=0 or a=1").holds(values.get)
    assert not parse_condition("f!=1").holds(lambda _: MISSING)


def test_the_quick_values_are_those_of_yaml() -> None:
    seed = random.randrange(1 << 32)
    generator = random.Random(seed)
    texts = [
        "a b",
        "",
        "x: y",
        "two\nlines\n",
        "- no list",
        "# none",
        "*star",
        "'",
        "null",
        "é",
        "1",
    ]

    def drawn(depth: int) -> object:
        kind = generator.randrange(7 if depth else 4)
        if kind < 4:
            return (generator.choice(texts), generator.random(), None, generator.randrange(9))[kind]
        if kind == 4:
            return [drawn(depth - 1) for _ in range(generator.randrange(4))]
        return {f"key{i}.x": drawn(depth - 1) for i in range(generator.randrange(5))}

    for _ in range(100):
        tree = {f"k{i}": drawn(3) for i in range(8)}
        text = OmegaConf.to_yaml(OmegaConf.create(tree))
        assert config_values(text) == yaml.safe_load(text), (seed, text)
    for line in ("on: 1", "No: 2.5", "a: -3", "a: -0.5", "a: 007", "a: 1_0", "a: 1e5", "a: ٣"):
        assert config_values(line) == {str(k): v for k, v in yaml.safe_load(line).items()}, line


def test_diff_shows_keys_versions_and_metrics(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = {"test/accuracy": 0.9, "test/loss": 0.6667}
    other = result(versions={"python": "3.12.1"}, metrics=metrics)
    make_run(runs / "other run", lr=0.5, seed=9, outcome=other)
    lines = _printed(capsys, "diff", "runs/good", "runs/other run").splitlines()
    assert [line.split() for line in lines if line.startswith(("seed", "python", "test/acc"))] == [
        ["seed", "7", "9"],
        ["python", "3.11.7", "3.12.1"],
        ["test/accuracy", "0.8333", "0.9000"],
    ]
    assert not any(line.startswith(("optimizer.lr", "test/loss")) for line in lines)
    same = _printed(capsys, "diff", "runs/good", "runs/good")
    assert same.count("no difference") == 3


def test_rm_shows_first_and_removes_only_what_it_listed(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outside = make_run(tmp_path / "outside", seed=2)
    (runs / "sweep" / "1" / "link").symlink_to(outside)
    (runs / "elsewhere").symlink_to(outside)
    where = "where=seed=2 or state=failed or state='not a run'"
    before = _states(runs)
    out = _printed(capsys, "rm", where)
    assert "nothing was removed; add confirm=true to remove 2 run(s)" in out
    assert _states(runs) == before
    with (runs / "failed" / ".lock").open("a+") as file:
        assert lock(file)
        Holder.this().write(file)
        out = _printed(capsys, "rm", f"{where} or state=running", "confirm=true")
    assert "failed: running" in out
    assert "photos: not a run" in out
    assert "removed 1 run(s)" in out
    del before["sweep/1"]
    assert _states(runs) == before
    assert json.loads((outside / "result.json").read_text())
    assert "follows none" in _refused(capsys, "rm", "runs/elsewhere", "confirm=true")


def test_rm_of_one_run_keeps_what_others_need(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(runs / "good" / "inner")
    assert "other runs lie in it" in _printed(capsys, "rm", "runs/good", "confirm=true")
    config = runs / "failed" / "config.yaml"
    config.write_text(config.read_text() + "privacy: {ledger: runs/failed/ledger.jsonl}\n")
    assert "privacy ledger" in _printed(capsys, "rm", "runs/failed", "confirm=true")
    assert "removed 1 run(s)" in _printed(capsys, "rm", "runs/sweep/0", "confirm=true")
    assert not (runs / "sweep" / "0").exists()
    assert (runs / "good").exists()
    assert (runs / "failed").exists()
