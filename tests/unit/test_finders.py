"""The learning rate and the batch size to begin with, as commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import heliotrope.finders
from heliotrope.cli import main
from heliotrope.finders import find_batch_size, find_lr
from tests.support import compose, global_random_state_untouched

_SMALL = ("model.hidden=[16]", "distributed.batch_size=64", "seed=3")


def test_the_learning_rate_found_is_where_the_loss_falls_fastest() -> None:
    with global_random_state_untouched():
        finding = find_lr(compose("distributed", *_SMALL))
    assert 0.01 < finding.best < 2.0, "plain SGD on the digits learns between these"
    place = finding.tried.index(finding.best)
    lowest = finding.measured.index(min(finding.measured))
    assert place < lowest
    assert finding.measured[0] > 2.0, "it begins untrained"
    assert find_lr(compose("distributed", *_SMALL)) == finding, "it is repeatable"


def test_the_batch_size_found_is_the_smallest_that_is_nearly_as_fast_as_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {8: 1.0, 16: 1.0, 32: 1.0, 64: 1.0, 128: 1.95, 256: 4.0, 512: 8.0}
    monkeypatch.setattr(heliotrope.finders, "_seconds", lambda _trial, size: seconds[size])
    finding = find_batch_size(compose("distributed", *_SMALL))
    assert finding.tried == [8, 16, 32, 64, 128, 256, 512], "up to a step of more than 5 s"
    assert finding.measured == [size / seconds[int(size)] for size in finding.tried]
    assert finding.best == 64


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
