"""`heliotrope tune` prints overrides that a run takes, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from heliotrope.cli import _imported, main

tune = _imported("federated.tune")


@pytest.mark.parametrize("fastest", ["sequential", "batched"])
def test_the_fastest_way_is_printed_as_overrides(
    fastest: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def seconds(_worker: object, choice: Any, _cohort: object) -> float:
        return 1e-6 if choice.kind == fastest and choice.stack <= 4 else 1e-3

    monkeypatch.setattr(tune, "seconds_a_step", seconds)
    monkeypatch.chdir(tmp_path)
    words = ["experiment=quickstart", "federated.cpus_per_worker=1"]
    assert main(["tune", *words]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert f"federated.client_training={fastest}" in printed
    assert "federated.cpus_per_worker=1" in printed
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(tune, "seconds_a_step", lambda *_: 1e-3)
    assert main(["tune", "experiment=quickstart", *printed.split()]) == 0
    assert "nothing to set" in capsys.readouterr().out


def test_ways_are_really_timed(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "experiment=quickstart",
        "federated.cpus_per_worker=1",
        "federated.clients_per_round=2",
    ]
    assert main(["tune", *words]) == 0
    table = capsys.readouterr().out
    assert "(by rule)" in table
    for kind in ("sequential", "captured", "batched"):
        assert kind in table


def test_a_way_that_the_model_does_not_allow_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["experiment=quickstart", "optimizer=adafactor", "federated.client_training=batched"]
    assert main(["tune", *words]) == 2
    assert "federated.client_training=batched" in capsys.readouterr().err
