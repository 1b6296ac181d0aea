"""The learning rate and the batch size to begin with, as commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import heliotrope.training.finders
from distributed.loop.single_worker import SingleWorker
from distributed.strategies import recompute
from distributed.strategies.ema import Ema
from distributed.strategies.local_sgd import LocalSgdEngine
from heliotrope.cli import main
from heliotrope.errors import ConfigError, RunFailedError
from heliotrope.training.finders import _Trial, find_batch_size, find_lr
from heliotrope.training.loop import TrainingBatch
from tests.support import compose, global_random_state_untouched

NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler"
)
_SMALL = ("model.hidden=[16]", "distributed.batch_size=64", "seed=3")


def test_the_learning_rate_found_is_a_tenth_of_that_of_the_lowest_loss() -> None:
    with global_random_state_untouched():
        finding = find_lr(compose("distributed", *_SMALL))
    lowest = finding.tried[finding.measured.index(min(finding.measured))]
    assert finding.best == pytest.approx(lowest / 10)
    assert finding.measured[0] > 2.0, "it begins untrained"
    assert find_lr(compose("distributed", *_SMALL)) == finding, "it is repeatable"


@pytest.mark.parametrize("size", [8, 32, 512])
@pytest.mark.parametrize(
    ("choice", "between"),
    [
        (("optimizer=sgd",), (0.02, 0.5)),
        (("optimizer=sgd", "optimizer.momentum=0.9"), (0.01, 0.3)),
        (("optimizer=adam",), (0.005, 0.1)),
    ],
    ids=lambda value: "+".join(map(str, value)),
)
def test_the_learning_rate_found_trains_whatever_the_seed_and_the_batch_size(
    choice: tuple[str, ...], between: tuple[float, float], size: int
) -> None:
    small = ("model.hidden=[16]", f"distributed.batch_size={size}")
    for seed in range(4):
        run = compose("distributed", *small, *choice, f"seed={seed}")
        found = find_lr(run).best
        assert between[0] < found < between[1], f"seed {seed}"
        trial = _Trial(run)
        losses = [trial.step(batch, found) for batch in islice(trial.batches(size), 120)]
        assert losses[0] > 1.5
        assert sum(losses[-40:]) / 40 < 1.0, f"seed {seed}: {found}"


def test_no_rate_is_found_where_the_loss_falls_at_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Trial, "step", lambda _trial, _batch, lr: 2.0 + lr)
    with pytest.raises(RunFailedError, match="falls at no learning rate"):
        find_lr(compose("distributed", *_SMALL))


def test_only_batches_of_the_size_that_is_told_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()

    def step(_trial: _Trial, batch: TrainingBatch, lr: float) -> float:
        seen.add(len(batch))
        return lr

    monkeypatch.setattr(_Trial, "step", step)
    finding = find_batch_size(compose("distributed", *_SMALL), SingleWorker)
    assert seen == set(finding.tried) == {8 * 2**power for power in range(8)}


def test_the_batch_size_found_is_the_smallest_that_is_nearly_as_fast_as_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {8: 1.0, 16: 1.0, 32: 1.0, 64: 1.0, 128: 1.95, 256: 4.0, 512: 8.0}
    monkeypatch.setattr(heliotrope.training.finders, "_seconds", lambda _trial, size: seconds[size])
    finding = find_batch_size(compose("distributed", *_SMALL), SingleWorker)
    assert finding.tried == [8, 16, 32, 64, 128, 256, 512], "up to a step of more than 5 s"
    assert finding.measured == [size / seconds[int(size)] for size in finding.tried]
    assert finding.best == 64


@pytest.mark.parametrize(
    "override",
    [
        "distributed.precision=bf16",
        pytest.param("distributed.compile=true", marks=NEEDS_COMPILER),
        "distributed.activation_checkpointing=true",
        "distributed.accumulation_steps=2",
        "distributed.ema_decay=0.9",
        "distributed.strategy=diloco",
    ],
)
def test_batch_sizes_are_timed_with_the_steps_of_a_worker(
    override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = compose("distributed", *_SMALL, override)
    taken: list[str] = []
    noting(taken, "bf16", torch.autocast, "__enter__", monkeypatch)
    noting(taken, "checkpointing", recompute, "checkpoint", monkeypatch)
    noting(taken, "diloco", LocalSgdEngine, "_exchange", monkeypatch)
    noting(taken, "ema", Ema, "update", monkeypatch)
    noting(taken, "accumulation", TrainingBatch, "parts", monkeypatch)
    noting(taken, "compile", torch, "compile", monkeypatch, replaced=lambda model, **_: model)
    trial = _Trial(run, SingleWorker)
    trial.step(next(trial.batches(16)), lr=1e-9)
    wanted = override.partition("=")[0].rpartition(".")[2].partition("_")[0]
    expected = {"precision": "bf16", "activation": "checkpointing", "strategy": "diloco"}
    assert expected.get(wanted, wanted) in taken


def noting(
    taken: list[str],
    what: str,
    owner: Any,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    replaced: Callable[..., Any] | None = None,
) -> None:
    """Note `what` when a function is called, which goes on to do what it does."""
    before = replaced or getattr(owner, name)

    def noted(*arguments: Any, **named: Any) -> Any:
        counts = what != "accumulation" or arguments[1] == 2
        taken.extend([what] if counts else [])
        return before(*arguments, **named)

    monkeypatch.setattr(owner, name, noted)


def test_batch_sizes_are_not_found_where_weights_are_divided() -> None:
    run = compose("distributed", *_SMALL, "distributed.strategy=fsdp")
    with pytest.raises(ConfigError, match=r"distributed\.strategy=fsdp.*distributed\.strategy=ddp"):
        find_batch_size(run, SingleWorker)


@pytest.mark.parametrize(
    ("command", "key"),
    [("find-lr", "optimizer.lr="), ("find-batch-size", "distributed.batch_size=")],
)
def test_a_command_prints_what_to_set_and_saves_a_plot(
    command: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    GlobalHydra.instance().clear()
    plot = tmp_path / "plot.png"
    assert main([command, *_SMALL, f"output={plot}"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(key)
    assert str(plot) in said
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("optimizer.lrr=1", "Did you mean 'optimizer.lr'?"),
        ("output=nowhere/plot.png", "no folder nowhere"),
        ("output=plot.txt", ".png"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_work(
    argument: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    GlobalHydra.instance().clear()
    assert main(["find-lr", argument]) == 2
    assert said in capsys.readouterr().err
