"""`evaluate` measures any checkpoint; `compare` sets runs side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heliotrope.commands.evaluate import evaluate_run
from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.errors import ConfigError
from heliotrope.evaluation import evaluate, named
from heliotrope.models import build
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.clock import Clock
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.events import Progress, Tracker
from heliotrope.tasks import task_of
from tests.support import Command, classification, compose


@pytest.fixture(scope="module")
def run() -> Run:
    return compose("federated", "experiment=quickstart", "model.hidden=[4]")


@pytest.fixture(scope="module")
def digits(run: Run) -> Dataset:
    return load(run.data, run.seed)


def leave_a_run(directory: Path, run: Run, *progress: int) -> Path:
    """Leave a run with a checkpoint of freshly drawn weights at each `progress`."""
    home = RunDirectory(directory)
    home.claim(run, "federated")
    home.begin(run)
    tracker = Tracker(home.metrics)
    tracker.emit("start", mode="federated", name=run.name, seed=run.seed)
    for number in progress:
        tracker.progress(
            "evaluate",
            Progress(examples_seen=100 * number),
            Clock(),
            {"round": number},
            **{"test/accuracy": number / 100, "test/loss": 1.0 / number},
        )
        state = {"preparation": load(run.data, run.seed).preparation.to_json()}
        saved = Checkpoint(number, weights_at(run, number), state=state)
        checkpoint.save(home.checkpoints, saved)
    tracker.close()
    home.release()
    return directory


def weights_at(run: Run, progress: int) -> dict[str, torch.Tensor]:
    digits = classification("digits", (1, 8, 8), tuple("0123456789"))
    return build(run.model, digits, progress).state_dict()


def measured(run: Run, digits: Dataset, progress: int) -> dict[str, float]:
    """Return what the one evaluation module says of those weights, without any checkpoint."""
    task = task_of(digits)
    model = build(run.model, task, progress)
    return {
        **named(evaluate(model, task, digits.validation, 1000), "validation"),
        **named(evaluate(model, task, digits.test, 1000), "test"),
    }


# --- evaluate -----------------------------------------------------------------------------


def test_the_newest_checkpoint_is_measured(
    tmp_path: Path, run: Run, digits: Dataset, heliotrope: Command
) -> None:
    directory = leave_a_run(tmp_path / "run", run, 1, 2)
    values = evaluate_run(directory)
    assert values == pytest.approx(measured(run, digits, 2), rel=1e-6)
    code, out, err = heliotrope("evaluate", f"run={directory}")
    assert (code, err) == (0, "")
    for name, value in values.items():
        (line,) = [line for line in out.splitlines() if name in line]
        assert f"{value:.6f}" in line


def test_a_checkpoint_can_be_named(tmp_path: Path, run: Run, digits: Dataset) -> None:
    directory = leave_a_run(tmp_path / "run", run, 1, 2)
    assert evaluate_run(directory, "00000001") == pytest.approx(measured(run, digits, 1), rel=1e-6)


def test_measuring_leaves_the_run_as_it_was(tmp_path: Path, run: Run) -> None:
    directory = leave_a_run(tmp_path / "run", run, 1)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    evaluate_run(directory, None, ["evaluation_batch_size=7"])
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_the_batch_size_of_the_evaluation_changes_nothing(
    tmp_path: Path, run: Run, digits: Dataset
) -> None:
    directory = leave_a_run(tmp_path / "run", run, 3)
    values = evaluate_run(directory, None, ["evaluation_batch_size=17"])
    assert values == pytest.approx(measured(run, digits, 3), rel=1e-5)


def test_the_target_of_the_training_does_not_hinder(tmp_path: Path) -> None:
    run = compose(
        "federated", "experiment=quickstart", "target.metric=validation/loss", "target.value=0.1"
    )
    directory = leave_a_run(tmp_path / "run", run, 1)
    assert "test/loss" in evaluate_run(directory, None, ["data.validation_fraction=0"])


def test_a_damaged_newest_checkpoint_is_passed_over_loudly(
    tmp_path: Path, run: Run, digits: Dataset, heliotrope: Command
) -> None:
    directory = leave_a_run(tmp_path / "run", run, 1, 2)
    (directory / "checkpoints" / "00000002" / "model.safetensors").write_bytes(b"torn")
    code, out, err = heliotrope("evaluate", f"run={directory}")
    assert code == 0
    assert "00000002/model.safetensors" in err.replace("\n", "")
    assert f"{measured(run, digits, 1)['test/loss']:.5f}"[:6] in out


def test_only_damaged_checkpoints_are_a_failure(
    tmp_path: Path, run: Run, heliotrope: Command
) -> None:
    directory = leave_a_run(tmp_path / "run", run, 1)
    (directory / "checkpoints" / "00000001" / "manifest.json").unlink()
    for arguments in ((), ("checkpoint=00000001",)):
        code, out, err = heliotrope("evaluate", f"run={directory}", *arguments)
        assert (code, out) == (1, "")
        assert str(directory / "checkpoints") in err.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), ("run=DIR",)),
        (("rum=x",), ("rum=x", "Did you mean 'run'?")),
        (("run",), ("run has no value", "run=DIR")),
        (("run={run}", "checkpoint=00000009"), ("checkpoint=00000009", "00000001, 00000002")),
        (("run={run}", "checkpoint=."), ("checkpoint=.", "00000001")),
        (("run={run}", "data=mnst"), ("data=mnst", "Did you mean 'mnist'?")),
        (("run={run}", "data.dirr=x"), ("data.dirr=x", "'data.dir'")),
        (("run={run}", "data=table", "data.path={tmp}/no.csv", "data.tset=x"), ("'data.test'",)),
        (("run={run}", "device=gpux"), ("device=gpux", "auto, cpu, cuda")),
        (("run={run}", "evaluation_batch_size=0"), ("evaluation_batch_size=0", "at least 1")),
        (("run={run}", "evaluation_batch_size=x"), ("evaluation_batch_size=x", "whole number")),
        (("run={run}", "optimizer.lr=1"), ("optimizer.lr=1",)),
        (("run={tmp}/nowhere",), ("nowhere", "no run directory")),
        (("run={tmp}",), ("no run directory", "config.yaml")),
    ],
)
def test_wrong_arguments_of_evaluate_are_usage_errors(
    arguments: tuple[str, ...],
    named: tuple[str, ...],
    tmp_path: Path,
    run: Run,
    heliotrope: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = leave_a_run(tmp_path / "run", run, 1, 2)
    filled = [argument.format(run=directory, tmp=tmp_path) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["heliotrope", "evaluate", *filled])
    code, out, err = heliotrope("evaluate", *filled)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for part in named:
        assert part in err


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        evaluate_run(leave_a_run(tmp_path / "run", run))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, run: Run) -> None:
    directory = leave_a_run(tmp_path / "run", run, 1)
    saved = directory / "config.yaml"
    saved.write_text(saved.read_text().replace("hidden:\n  - 4", "hidden:\n  - 5"))
    with pytest.raises(ConfigError, match=r"1\.weight is \[4, 64\] there and \[5, 64\]"):
        evaluate_run(directory)


# --- compare ------------------------------------------------------------------------------


def test_runs_are_set_side_by_side_in_one_page(
    tmp_path: Path, run: Run, heliotrope: Command
) -> None:
    directories = [str(leave_a_run(tmp_path / name, run, 1, 2)) for name in ("first", "second")]
    code, out, err = heliotrope("compare", *directories)
    assert (code, err) == (0, "")
    assert "0.0200" in out
    page = tmp_path / "report.html"
    assert f"report: {page}" in out.replace("\n", "")
    assert "<html" in page.read_text().lower()


def test_the_page_goes_where_it_is_wanted(tmp_path: Path, run: Run, heliotrope: Command) -> None:
    directory = leave_a_run(tmp_path / "run", run, 1)
    page = tmp_path / "pages" / "mine.html"
    assert heliotrope("compare", str(directory), f"output={page}")[0] == 0
    assert page.exists()
    assert not (tmp_path / "report.html").exists()


def test_a_directory_with_an_equals_sign_is_a_directory(
    tmp_path: Path, run: Run, heliotrope: Command
) -> None:
    directory = leave_a_run(tmp_path / "lr=0.1", run, 1)
    assert heliotrope("compare", str(directory), f"output={tmp_path / 'r.html'}")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), ("at least one run directory",)),
        (("--wide",), ("--wide",)),
        (("ouput=x.html",), ("ouput=x.html", "output=FILE")),
        (("{tmp}/nowhere",), ("nowhere", "metrics.jsonl")),
        (("{run}", "output={tmp}"), ("directory", "report.html")),
    ],
)
def test_wrong_arguments_of_compare_are_usage_errors(
    arguments: tuple[str, ...],
    named: tuple[str, ...],
    tmp_path: Path,
    run: Run,
    heliotrope: Command,
) -> None:
    directory = leave_a_run(tmp_path / "run", run, 1)
    filled = [argument.format(run=directory, tmp=tmp_path) for argument in arguments]
    code, _, err = heliotrope("compare", *filled)
    assert code == 2
    assert err.startswith("error: ")
    for part in named:
        assert part in err


def test_inputs_are_scaled_as_in_training_whatever_the_split(tmp_path: Path, run: Run) -> None:
    directory = leave_a_run(tmp_path / "run", run, 1)
    as_trained = evaluate_run(directory)
    without_validation = evaluate_run(directory, None, ["data.validation_fraction=0"])
    assert without_validation["test/loss"] == as_trained["test/loss"]
