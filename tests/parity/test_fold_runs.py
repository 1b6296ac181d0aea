"""Cross-validation trained in both modes: what folds are tested on, resume, and what they spend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distributed.job import run_job as run_distributed
from federated.job import run_job as run_federated
from heliotrope.commands.evaluate import evaluate_run
from heliotrope.config import Mode
from heliotrope.privacy.project import ProjectLedger
from tests.support import Started, Type

pytestmark = pytest.mark.usefixtures("no_report")

_QUICK = ("experiment=digits_cv", "folds=2", "hydra.run.dir=cv")
_INLINE = ("distributed.launcher=inline", "distributed.workers=1", "distributed.epochs=1")


def result(directory: Path) -> dict[str, Any]:
    found = json.loads((directory / "result.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("mode", "job", "words"),
    [
        ("federated", Started(run_federated), ("federated.rounds=1",)),
        ("distributed", Started(run_distributed), _INLINE),
    ],
)
def test_a_fold_s_checkpoint_is_evaluated_on_the_rows_that_it_has_not_seen(
    mode: Mode, job: Started, words: tuple[str, ...], type_: Type, tmp_path: Path
) -> None:
    assert type_(mode, *_QUICK, *words, job=job) == 0
    folds = [result(tmp_path / "cv" / f"fold-{fold}")["metrics"] for fold in (0, 1)]
    assert folds[0] != folds[1]
    for fold, metrics in enumerate(folds):
        again = evaluate_run(tmp_path / "cv" / f"fold-{fold}")
        assert again["test/accuracy"] == metrics["test/accuracy"]
        assert again["test/loss"] == pytest.approx(metrics["test/loss"], rel=1e-5)
    whole = result(tmp_path / "cv")["metrics"]["test/accuracy"]
    assert whole == pytest.approx(sum(metrics["test/accuracy"] for metrics in folds) / 2)


def test_a_fold_that_was_cut_goes_on_from_its_checkpoint(
    type_: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words, job = (*_QUICK[:2], "federated.rounds=2"), Started(run_federated)
    assert type_("federated", *words, "hydra.run.dir=whole", job=job) == 0
    cut = (*_QUICK[:2], "federated.rounds=1", "fold=1", "hydra.run.dir=cv/fold-1")
    assert type_("federated", *cut, job=job) == 0
    assert type_("federated", *words, "hydra.run.dir=cv", "resume=true", job=job) == 0
    assert capsys.readouterr().out.count("resuming after round 1") == 1
    assert result(tmp_path / "cv")["folds"] == result(tmp_path / "whole")["folds"]


def test_every_fold_is_charged(
    type_: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.jsonl"
    private = ("data.fit=none", "federated/privacy=central", f"privacy.ledger={ledger}")
    noise = ("federated.privacy.noise_multiplier=8", "federated.rounds=1")
    assert type_("federated", *_QUICK, *private, *noise, job=Started(run_federated)) == 0
    entries = ProjectLedger(ledger).entries()
    assert [entry.purpose for entry in entries] == ["fold of a cross-validation"] * 2
    assert len({entry.people for entry in entries}) == 1
    assert f"2 trials of {tmp_path}/cv" in capsys.readouterr().out
    alone = ("experiment=quickstart", "hydra.run.dir=alone", *private, *noise)
    assert type_("federated", *alone, job=Started(run_federated)) == 0
    assert ProjectLedger(ledger).entries()[-1].purpose == "training", "a run alone is no trial"
