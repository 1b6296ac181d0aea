"""A run's directory belongs to one process and to one experiment."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliotrope import config
from heliotrope.config import Mode, Run
from heliotrope.errors import ConfigError, RunDirectoryError
from heliotrope.runs.directory import RunDirectory, git_commit, versions
from heliotrope.runs.events import Tracker
from tests.support import ROOT, compose, environment

HOLD = """
import sys
from pathlib import Path
from heliotrope.runs.directory import RunDirectory
from tests.support import compose
home = RunDirectory(Path(sys.argv[1]))
home.claim(compose("federated"), "federated")
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[RunDirectory]:
    directory = RunDirectory(tmp_path / "run")
    yield directory
    directory.release()


def federated(*overrides: str) -> Run:
    return compose("federated", *overrides)


def finished(home: RunDirectory, run: Run, mode: Mode = "federated") -> None:
    """Leave what a run of `mode` leaves, except for checkpoints."""
    home.claim(run, mode)
    home.begin(run)
    tracker = Tracker(home.metrics)
    tracker.emit("start", mode=mode, name=run.name, seed=run.seed)
    tracker.close()
    home.write_result({"status": "completed"})
    home.release()


def test_beginning_writes_the_config_that_reads_back(home: RunDirectory) -> None:
    run = federated("experiment=quickstart", "seed=3")
    home.claim(run, "federated")
    assert [path.name for path in home.path.iterdir()] == [".lock"], "nothing has begun"
    home.begin(run)
    assert config.from_resolved(home.config) == run
    assert sorted(path.name for path in home.path.iterdir()) == [".lock", "config.yaml"]


def test_a_directory_that_holds_a_run_is_refused_without_resume(home: RunDirectory) -> None:
    finished(home, federated())
    with pytest.raises(RunDirectoryError, match="resume=true") as caught:
        home.claim(federated(), "federated")
    assert str(home.path) in str(caught.value)
    assert json.loads(home.result.read_text()) == {"status": "completed"}, "the run was touched"


def test_a_refused_claim_holds_nothing(home: RunDirectory) -> None:
    finished(home, federated())
    with pytest.raises(RunDirectoryError):
        home.claim(federated(), "federated")
    again = RunDirectory(home.path)
    again.claim(federated("resume=true"), "federated")
    again.release()


# --- resuming -----------------------------------------------------------------------------


def test_a_resumed_run_is_not_complete_until_it_is_again(home: RunDirectory) -> None:
    finished(home, federated())
    again = federated("resume=true", "federated.rounds=99")
    home.claim(again, "federated")
    assert home.result.exists(), "what was reached is lost though nothing has begun"
    assert "rounds: 99" not in home.config.read_text()
    home.begin(again)
    home.begin(again)
    assert not home.result.exists()


@pytest.mark.parametrize(
    "override",
    [
        "federated.rounds=99",
        "federated.quorum=0.5",
        "federated.checkpoint_every=1",
        "evaluation_batch_size=7",
        "device=cpu",
        "distributed.batch_size=64",
        "data.dir=/elsewhere",
    ],
)
def test_what_does_not_make_it_another_run_may_change(home: RunDirectory, override: str) -> None:
    data = ("data=mnist",) if override.startswith("data.") else ()
    finished(home, federated(*data))
    run = federated("resume=true", *data, override)
    home.claim(run, "federated")
    home.begin(run)
    home.release()
    key, _, value = override.partition("=")
    assert f"{key.rpartition('.')[2]}: {value}" in home.config.read_text()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("seed=5",), ("seed=0", "seed=5", "Set seed=0 to resume it")),
        (("optimizer.lr=0.3",), ("optimizer.lr=0.1", "optimizer.lr=0.3")),
        (("model.hidden=[64]",), ("model.hidden=[128]", "model.hidden=[64]")),
        (("model=cnn",), ("Set model=mlp to resume it", "model=cnn")),
        (
            ("federated.partition.alpha=0.5",),
            ("federated.partition.alpha=0.3", "federated.partition.alpha=0.5"),
        ),
        (("federated/strategy=krum",), ("Set federated/strategy=fedavg to resume it",)),
        (("data.validation_fraction=0.2",), ("data.validation_fraction=0.1",)),
        (("federated.local_epochs=2",), ("federated.local_epochs=1",)),
    ],
)
def test_another_run_is_refused_naming_the_key_and_both_values(
    home: RunDirectory, overrides: tuple[str, ...], named: tuple[str, ...]
) -> None:
    finished(home, federated())
    before = home.config.read_text()
    with pytest.raises(RunDirectoryError) as caught:
        home.claim(federated("resume=true", *overrides), "federated")
    for part in (str(home.path), *named):
        assert part in str(caught.value)
    assert home.config.read_text() == before
    assert home.result.exists()


def test_a_run_that_notes_a_relative_path_is_resumed_from_elsewhere(
    home: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = ("data=table", "data.target=sick", "resume=true")
    finished(home, federated(*table, "data.path=mine/rows.csv"))
    whole = f"{tmp_path}/mine/rows.csv"
    text = home.config.read_text()
    assert whole in text
    home.config.write_text(text.replace(whole, "./mine/rows.csv"))
    monkeypatch.chdir("/")
    with pytest.raises(RunDirectoryError, match=r"other\.csv"):
        home.claim(federated(*table, f"data.path={tmp_path}/mine/other.csv"), "federated")
    home.claim(federated(*table, f"data.path={whole}"), "federated")


def test_the_other_mode_cannot_resume_it(home: RunDirectory) -> None:
    finished(home, federated())
    run = compose("distributed", "resume=true")
    with pytest.raises(RunDirectoryError, match="holds a federated run") as caught:
        home.claim(run, "distributed")
    assert "python -m federated" in str(caught.value)


@pytest.mark.parametrize("first_line", ["", '{"event": "sta', "\n", "[]\n", '{"event": "start"}\n'])
def test_a_run_killed_before_its_first_event_can_be_resumed(
    home: RunDirectory, first_line: str
) -> None:
    finished(home, federated())
    home.metrics.write_text(first_line)
    home.claim(federated("resume=true"), "federated")


def test_a_run_killed_before_it_logged_anything_can_be_resumed(home: RunDirectory) -> None:
    finished(home, federated())
    home.metrics.unlink()
    home.claim(federated("resume=true"), "federated")


def test_resuming_where_there_is_no_run_starts_one(home: RunDirectory) -> None:
    home.claim(federated("resume=true"), "federated")
    home.begin(federated("resume=true"))
    assert home.config.exists()


@pytest.mark.parametrize("content", [b"", b"{ unclosed", b"\xff\xfe", b"- a list\n"])
def test_an_unreadable_config_is_refused_by_name(home: RunDirectory, content: bytes) -> None:
    finished(home, federated())
    home.config.write_bytes(content)
    with pytest.raises(ConfigError, match=str(home.config)):
        home.claim(federated("resume=true"), "federated")


# --- one process at a time ----------------------------------------------------------------


@pytest.fixture
def holder(home: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the directory, and end it with the test."""
    home.path.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.path)],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_directory_in_use_is_refused_even_to_resume(
    home: RunDirectory, holder: subprocess.Popen[str]
) -> None:
    for run in (federated(), federated("resume=true")):
        with pytest.raises(RunDirectoryError, match=f"in use by process {holder.pid}") as caught:
            home.claim(run, "federated")
        assert str(home.path) in str(caught.value)
    assert not home.config.exists()


def test_the_lock_of_a_killed_process_is_no_obstacle(
    home: RunDirectory, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((home.path / ".lock").read_text())["pid"] == holder.pid
    home.claim(federated(), "federated")


def test_two_claims_in_one_process_exclude_each_other_until_released(home: RunDirectory) -> None:
    home.claim(federated(), "federated")
    second = RunDirectory(home.path)
    with pytest.raises(RunDirectoryError, match="in use by process"):
        second.claim(federated("resume=true"), "federated")
    home.release()
    second.claim(federated("resume=true"), "federated")
    second.release()


# --- result.json --------------------------------------------------------------------------


def test_the_result_is_strict_json_even_of_a_run_that_diverged(home: RunDirectory) -> None:
    home.claim(federated(), "federated")
    home.write_result({"metrics": {"loss": math.nan, "accuracy": 0.5}, "list": [math.inf]})

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    result = json.loads(home.result.read_text(), parse_constant=refuse)
    assert result == {"metrics": {"loss": None, "accuracy": 0.5}, "list": [None]}


def test_a_result_that_cannot_be_written_leaves_the_old_one(home: RunDirectory) -> None:
    home.claim(federated(), "federated")
    home.write_result({"number": 1})
    with pytest.raises(TypeError):
        home.write_result({"number": object()})
    assert json.loads(home.result.read_text()) == {"number": 1}


def test_paths_do_not_depend_on_where_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = RunDirectory(Path("run"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    home.claim(federated(), "federated")
    home.begin(federated())
    home.release()
    assert (tmp_path / "run" / "config.yaml").exists()


def test_versions_name_what_is_missing_too() -> None:
    found = versions("pytest", "no-such-package")
    assert found["pytest"] == pytest.__version__
    assert found["no-such-package"] == "not installed"
    assert found["python"] == sys.version.split()[0]


def test_the_commit_is_the_checkouts() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (git_commit() or "").removesuffix("-dirty") == head.stdout.strip()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"hydra\.run\.dir=.*file"):
        RunDirectory(tmp_path / "file" / "run").claim(federated(), "federated")


def test_another_choice_of_a_group_is_named_as_one_types_it(home: RunDirectory) -> None:
    finished(home, federated("federated/partition=shards"))
    with pytest.raises(RunDirectoryError, match="Set federated/partition=shards to resume"):
        home.claim(federated("resume=true"), "federated")
