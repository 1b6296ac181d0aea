"""`python -m distributed` from end to end: the three launchers, as a person starts them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

from heliotrope.cluster.connection import alive
from heliotrope.cluster.placement import Request, room
from heliotrope.commands.evaluate import evaluate_run
from heliotrope.errors import ConfigError
from heliotrope.system.background import in_background
from heliotrope.system.signals import Stop
from tests.distributed_runs import INLINE, RAY, SMALL, TORCHRUN, ready, result_of, train, wait_until
from tests.support import command, environment, events_of


def test_the_default_launcher_leaves_all_that_a_run_promises(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = command(
        "distributed",
        "experiment=quickstart",
        "distributed.epochs=6",
        f"hydra.run.dir={out}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for epoch in range(1, 7):
        assert f"epoch {epoch}/6" in done.stdout
    assert str(out) in done.stdout.splitlines()[-1]

    made = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert made == {
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "overrides.json",
        "report.html",
        "result.json",
        "run.log",
    }
    result = result_of(out)
    assert result["status"] == "completed"
    assert result["metrics"]["test/accuracy"] > 0.9
    assert result["epochs"] == 6
    assert result["versions"]["ray"] != "not installed"
    assert 0 < result["train_seconds"] < result["wall_seconds"]
    assert 0 < result["startup_seconds"] < result["wall_seconds"]
    assert result["peak_rss_bytes"] > 3 * 100e6  # the driver and two workers have torch loaded
    kinds = [event["event"] for event in events_of(out)]
    assert kinds == ["start", *["train", "evaluate"] * 6, "final", "end"]
    log = (out / "run.log").read_text()
    assert all(f"[{who}]" in log for who in ("driver", "rank 0", "rank 1"))


def test_torchrun_needs_no_ray(tmp_path: Path) -> None:
    absent = tmp_path / "path" / "ray"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ImportError('Ray is not installed')")
    found = environment()
    found["PYTHONPATH"] = f"{absent.parent}:{found['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "distributed", *SMALL, *TORCHRUN, "distributed.epochs=1"],
        cwd=tmp_path,
        env=found,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_processes_that_torchrun_started_are_the_ranks_in_one_directory(tmp_path: Path) -> None:
    found = environment()
    found["PYTHONPATH"] = f"{_without_unpickling(tmp_path / 'path')}:{found['PYTHONPATH']}"
    start = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "distributed"]
    done = subprocess.run(
        [sys.executable, *start, *SMALL, *TORCHRUN, "distributed.epochs=2"],
        cwd=tmp_path,
        env=found,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [made] = tmp_path.glob("runs/custom/distributed/*")
    assert result_of(made)["epochs"] == 2
    assert [e["epoch"] for e in events_of(made, "train")] == [1, 2]
    assert done.stdout.count("results in") == 1


def _without_unpickling(folder: Path) -> Path:
    """Return a folder for PYTHONPATH that forbids torch.distributed to unpickle what it receives.

    torch's distributed_c10d keeps the class that it finds when it is imported.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import pickle, sys\n"
        "class Unpickler(pickle.Unpickler):\n"
        "    def __init__(self, *arguments, **options):\n"
        "        if sys._getframe(1).f_globals['__name__'].startswith('torch.distributed'):\n"
        "            raise SystemExit('unpickled what came from another process')\n"
        "        super().__init__(*arguments, **options)\n"
        "pickle.Unpickler = Unpickler\n"
    )
    return folder


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (RAY, "distributed.launcher=ray.*Set distributed.launcher=torchrun"),
        ([*TORCHRUN, "distributed.workers=3"], "Set distributed.workers=2"),
        ([*TORCHRUN, "distributed.max_failures=4"], "--max-restarts 4"),
    ],
)
def test_a_configuration_that_does_not_fit_torchrun_is_refused(
    overrides: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, *overrides)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_report")
def test_a_target_stops_training_where_it_is_reached(tmp_path: Path) -> None:
    target = ["target.metric=test/accuracy", "target.value=0.8"]
    train(tmp_path / "run", *INLINE, *target, epochs=50)
    result = result_of(tmp_path / "run")
    assert result["target"]["reached"]
    assert result["target"]["epochs"] == result["epochs"] < 50
    assert result["metrics"]["test/accuracy"] >= 0.8

    train(tmp_path / "run", *INLINE, *target, "resume=true", epochs=50)
    assert result_of(tmp_path / "run")["epochs"] == result["epochs"]
    higher = ["target.metric=test/accuracy", "target.value=0.9"]
    train(tmp_path / "run", *INLINE, *higher, "resume=true", epochs=50)
    assert result_of(tmp_path / "run")["epochs"] > result["epochs"]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("metric", ["validation/loss", "test/accuracy"])
def test_the_newest_and_the_best_checkpoints_are_kept(metric: str, tmp_path: Path) -> None:
    keep = [
        "distributed.keep_last=1",
        "distributed.keep_best=2",
        f"distributed.best_metric={metric}",
    ]
    noisy = ["optimizer.lr=0.3", "distributed.checkpoint_every=100"]
    train(tmp_path, *INLINE, *keep, *noisy, epochs=4)
    train(tmp_path, *INLINE, *keep, *noisy, "resume=true", epochs=8)
    values = [(event[metric], event["steps"]) for event in events_of(tmp_path, "evaluate")]
    sign = 1 if metric.endswith("loss") else -1
    best = sorted(values, key=lambda value: (sign * value[0], value[1]))[:2]
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {steps for _, steps in best} | {8 * 11}
    for value, steps in best:
        assert evaluate_run(tmp_path, f"{steps:08d}")[metric] == pytest.approx(value, rel=1e-6)


@pytest.mark.usefixtures("no_report")
def test_evaluations_and_checkpoints_come_when_due_and_at_the_end(tmp_path: Path) -> None:
    due = ["distributed.evaluate_every=2", "distributed.checkpoint_every=3"]
    train(tmp_path, *INLINE, *due, epochs=5)
    assert [e["epoch"] for e in events_of(tmp_path, "evaluate")] == [2, 4, 5]
    steps = 11  # 1294 examples in batches of 128
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"{steps * epoch:08d}" for epoch in (3, 5)]


@pytest.mark.usefixtures("no_report", "ray_session")
@pytest.mark.parametrize("launcher", [INLINE, pytest.param(RAY, marks=pytest.mark.slow)])
def test_a_run_that_no_longer_improves_stops_early(
    launcher: tuple[str, ...], tmp_path: Path
) -> None:
    early = ["distributed.early_stopping.metric=test/accuracy"]
    early += ["distributed.early_stopping.min_delta=0.2", "distributed.early_stopping.patience=2"]
    out = train(tmp_path / "run", *launcher, *early, epochs=50)
    accuracies = [event["test/accuracy"] for event in events_of(out, "evaluate")]
    best, *stale = accuracies[-3:]
    assert all(value <= best + 0.2 for value in stale)
    assert result_of(out)["epochs"] == len(accuracies) < 50

    train(out, *launcher, *early, "resume=true", epochs=50)
    assert result_of(out)["epochs"] == len(accuracies), "what was stopped stays stopped"
    patient = [*early[:-1], "distributed.early_stopping.patience=3"]
    train(out, *launcher, *patient, "resume=true", epochs=50)
    assert result_of(out)["epochs"] > len(accuracies)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_an_elastic_run_takes_what_others_leave_and_grows_when_they_go(
    ray_session: ModuleType, tmp_path: Path
) -> None:
    def worlds() -> list[int]:
        text = (tmp_path / "run.log").read_text() if (tmp_path / "run.log").exists() else ""
        return [int(count) for count in re.findall(r"launcher ray: (\d+) worker", text)]

    held = ExitStack()
    held.enter_context(room(ray_session, alive(ray_session), "others", Request(1, {"CPU": 1}), 30))

    def others_go() -> None:
        with held:
            wait_until(lambda: worlds() == [1] and ready(tmp_path))

    going = in_background(others_go)
    long = ("distributed.workers=[1,2]", "distributed.epochs=100000", "distributed.batch_size=8")
    # It is stopped, as by a signal, once it has grown.
    enough = in_background(lambda: wait_until(lambda: worlds() == [1, 2]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stop, "asked", lambda _stop: enough.done())
        with pytest.raises(SystemExit):
            train(tmp_path, *RAY, *long)
    going.result()
    enough.result()
    seen = [event["examples_seen"] for event in events_of(tmp_path, "train")]
    assert seen == [1294 * epoch for epoch in range(1, len(seen) + 1)]


def _timings(directory: Path) -> list[dict[str, float]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [event["timing"] for event in map(json.loads, lines) if event["event"] == "train"]


@pytest.mark.usefixtures("no_report", "ray_session")
@pytest.mark.parametrize("launcher", [INLINE, pytest.param(RAY, marks=pytest.mark.slow)])
def test_the_time_of_a_step_is_told_by_its_parts(launcher: tuple[str, ...], tmp_path: Path) -> None:
    out = train(tmp_path, *launcher, epochs=2)
    result = result_of(out)
    timings = _timings(out)
    assert len(timings) == 2
    for timing in timings:
        parts = [timing[f"{name}_ms"] for name in ("data", "forward_backward", "optimizer")]
        assert sum(parts) == pytest.approx(timing["step_ms"], abs=1e-3)
        steps = 11  # 1294 examples in batches of 128
        rate = 1294 / (timing["step_ms"] * 1e-3 * steps)
        assert timing["examples_per_second"] == pytest.approx(rate, rel=0.01)
        # 64 inputs, 16 hidden units, 10 classes: a product and a sum each, and twice that back.
        operations = 3 * 2 * (64 * 16 + 16 * 10)
        expected = operations * timing["examples_per_second"]
        assert timing["operations_per_second"] == pytest.approx(expected, rel=0.01)
        assert ("communication_ms" in timing) == (launcher is RAY)
        assert "mfu" not in timing, "what this machine could do is not known"
    total = sum(timing["step_ms"] for timing in timings) * 11e-3
    assert 0 < total <= result["train_seconds"] + 1e-3, "a part of it, but for rounding"


@pytest.mark.usefixtures("no_report", "ray_session")
@pytest.mark.parametrize("launcher", [INLINE, pytest.param(RAY, marks=pytest.mark.slow)])
def test_a_profile_of_some_steps_is_written(launcher: tuple[str, ...], tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", *launcher, epochs=1)
    out = train(tmp_path / "profiled", *launcher, "distributed.profile=true", epochs=1)
    trace = json.loads((out / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {f"ProfilerStep#{step}" for step in (3, 4, 5)} <= names
    assert "aten::addmm" in names
    assert events_of(out, "evaluate") == events_of(plain, "evaluate")


@pytest.mark.usefixtures("no_report", "ray_session")
@pytest.mark.parametrize("launcher", [INLINE, pytest.param(RAY, marks=pytest.mark.slow)])
def test_tensorboard_sees_a_run_in_any_launcher(launcher: tuple[str, ...], tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, *launcher, "tracking.tensorboard=true", epochs=2)
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    losses = [(point.step, point.value) for point in found.Scalars("test/loss")]
    told = [(e["steps"], e["test/loss"]) for e in events_of(tmp_path, "evaluate")]
    assert [step for step, _ in losses] == [step for step, _ in told]
    assert [v for _, v in losses] == pytest.approx([v for _, v in told], rel=1e-6)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distributed.lr_warmup_steps=999", "below 22"),  # 2 epochs of 11 steps
        ("distributed.accumulation_steps=3", "Set distributed.accumulation_steps=2"),
        ("distributed.strategy=fsdp", "Set distributed.workers=2"),
        ("distributed.early_stopping.metric=test/los", "Did you mean 'test/loss'?"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(
    override: str, said: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = command(
        "distributed",
        *SMALL,
        *INLINE,
        "distributed.epochs=2",
        override,
        f"hydra.run.dir={out}",
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert override in done.stderr
    assert said in done.stderr
    assert not out.exists()
