"""Sweeps of a random number of trials: what is drawn, and what is claimed of the best."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import dp_event, rdp

from federated.job import run_job
from heliotrope.commands.trials import Drawing, Trials
from heliotrope.privacy.accountant import epsilon, epsilon_of_best
from heliotrope.privacy.mechanisms import Mechanism
from heliotrope.privacy.project import Entry, People, ProjectLedger, Sweep
from heliotrope.privacy.totals import groups, sweeps_of
from tests.support import Command, Started, Type, fresh_seed

_ONE = Mechanism("poisson", 4.0, 10, 100)
_PEOPLE = People("digits", "abc", "client")
_SWEEP = (
    "-m",
    "hydra.sweep.dir=sweep",
    "optimizer.lr=0.1,0.2,0.3",
    "federated/privacy=central",
    "federated.privacy.noise_multiplier=2",
    "data.fit=none",
    "privacy.ledger=ledger.jsonl",
)


@pytest.mark.parametrize("selection", ["geometric", "poisson"])
def test_the_number_of_trials_has_the_distribution_that_is_accounted_for(selection: str) -> None:
    points, first = [["a=1"], ["a=2"], ["a=3"]], fresh_seed()
    drawn = [Trials.drawn(points, selection, 4.0, first + n) for n in range(4000)]
    counts = np.array([len(trials.jobs) for trials in drawn])
    variance = 12.0 if selection == "geometric" else 4.0
    assert counts.mean() == pytest.approx(4.0, abs=5 * math.sqrt(variance / 4000))
    assert counts.var() == pytest.approx(variance, rel=0.3)
    expected = 0.25 if selection == "geometric" else 4 * math.exp(-4)
    assert (counts == 1).mean() == pytest.approx(expected, abs=5 * math.sqrt(expected / 4000))
    assert (counts == 0).any() == (selection == "poisson")
    chosen = Counter(job[0] for trials in drawn for job in trials.jobs)
    assert all(abs(chosen[f"a={n}"] / sum(chosen.values()) - 1 / 3) < 0.03 for n in (1, 2, 3))
    seeds = [job[-1] for trials in drawn for job in trials.jobs]
    assert len(set(seeds)) > 0.999 * len(seeds)  # trials are independent, also of one combination


def test_what_was_drawn_is_durable_before_a_trial_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, bool]] = []  # of a folder, when the file was there

    def fsync(file: int) -> None:
        of_folder = stat.S_ISDIR(os.fstat(file).st_mode)
        synced.append((of_folder, (tmp_path / "trials.json").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    drawing = Drawing([], None)
    drawing.trials = Trials("poisson", 2.0, (("seed=1",),))
    drawing.write(tmp_path)
    assert synced == [(False, False), (True, True)]
    assert Trials.read(tmp_path) == drawing.trials


@pytest.mark.parametrize(("selection", "shape"), [("geometric", 1.0), ("poisson", math.inf)])
def test_the_best_is_accounted_for_as_dp_accounting_does(selection: str, shape: float) -> None:
    once = dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(4.0))
    event = dp_event.RepeatAndSelectDpEvent(dp_event.SelfComposedDpEvent(once, 50), 8.0, shape)
    exact = rdp.RdpAccountant().compose(event).get_epsilon(1e-5)
    found = epsilon_of_best([(_ONE, 50)], selection, 8.0, 1e-5)
    assert found == pytest.approx(exact, abs=1e-3)
    assert found > epsilon([(_ONE, 50)], 1e-5).rdp  # never less than one trial
    many = [(_ONE, 50 * 64)]
    assert epsilon_of_best([(_ONE, 50)], selection, 64.0, 1e-5) < epsilon(many, 1e-5).value


def _trial(run: str, sweep: Sweep, count: int = 50, ended: bool = True) -> Entry:
    entry = Entry(run, "/runs/s/0", "m", "federated", "trial of a sweep", _PEOPLE, 1e-3)
    fields = {**vars(entry), "spent": ((_ONE, count),), "ended": ended, "sweep": sweep}
    return Entry(**fields)


@pytest.mark.parametrize(
    ("trials", "claimed"),
    [
        ([50, 50, 50], True),
        ([50, 50], False),  # one is still to come
        ([50, 50, 40], False),
        ([50, 50, -50], False),  # reserved, and still going on
    ],
)
def test_less_is_claimed_only_of_all_trials_that_were_drawn(
    trials: list[int], claimed: bool
) -> None:
    sweep = Sweep("/runs/s", "geometric", 5.0, 3)
    entries = [_trial(str(n), sweep, abs(count), count > 0) for n, count in enumerate(trials)]
    (group,) = groups(entries)
    (found,) = sweeps_of(group, 1e-3)
    assert found.whole is not None
    assert found.whole.value == pytest.approx(epsilon([(_ONE, sum(map(abs, trials)))], 1e-3).value)
    assert (found.best is not None) == claimed
    assert ("for the best alone" in found.line) == claimed
    plain = Sweep("/runs/s")
    (found,) = sweeps_of(groups([_trial(str(n), plain) for n in range(3)])[0], 1e-3)
    assert found.best is None
    assert "their number was not drawn" in found.line


def test_a_sweep_trains_what_was_drawn_and_goes_on_with_it(type_: Type, tmp_path: Path) -> None:
    keys = ("privacy.selection=poisson", "privacy.trials=4", "seed=3")
    job = Started()
    assert type_("federated", *_SWEEP, *keys, job=job) == 0
    saved = json.loads((tmp_path / "sweep" / "trials.json").read_text())
    assert len(job.runs) == len(saved["jobs"])
    assert len({run.seed for run in job.runs}) == len(job.runs) > 1
    assert {run.optimizer.lr for run in job.runs} <= {0.1, 0.2, 0.3}
    again = Started()
    assert type_("federated", *_SWEEP, *keys, "resume=true", job=again) == 0
    assert [run.seed for run in again.runs] == [run.seed for run in job.runs]
    assert again.directories == job.directories
    other = Started()
    assert type_("federated", *_SWEEP, *keys[:2], "hydra.sweep.dir=other", job=other) == 0
    assert [run.seed for run in other.runs] != [run.seed for run in job.runs]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["privacy.selection=geometric"], "privacy.trials=null: the number of trials is drawn"),
        (["privacy.selection=uniform", "privacy.trials=3"], "privacy.selection=uniform"),
        (
            ["privacy.selection=poisson", "privacy.trials=3", "federated.rounds=2,4"],
            "federated.rounds=2,4: with privacy.selection, trials must not differ",
        ),
        (["privacy.selection=poisson", "privacy.trials=3", "seed=1,2"], "have seeds of their own"),
    ],
)
def test_what_the_theorem_does_not_cover_is_refused(
    more: list[str], said: str, type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Started()
    assert type_("federated", *_SWEEP, *more, job=job) == 2
    assert said in capsys.readouterr().err
    assert job.runs == []


@pytest.mark.usefixtures("no_report")
def test_the_end_of_a_sweep_tells_what_its_trials_have_spent(
    type_: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path, heliotrope: Command
) -> None:
    small = ("model.hidden=[4]", "federated.rounds=1", "federated.clients_per_round=4")
    real = Started(run_job)
    plain = [*_SWEEP, *small, "federated.cpus_per_worker=1"]
    plain[2] = "optimizer.lr=0.1,0.2"
    assert type_("federated", *plain, job=real) == 0
    told = capsys.readouterr().out
    assert f"privacy: 2 trials of {tmp_path / 'sweep'}: epsilon" in told
    assert "their number was not drawn" in told
    entries = ProjectLedger(tmp_path / "ledger.jsonl").entries()
    assert [entry.purpose for entry in entries] == ["trial of a sweep"] * 2
    drawn = [*plain, "hydra.sweep.dir=drawn", "privacy.selection=geometric", "privacy.trials=2"]
    drawn += ["seed=1"]
    assert type_("federated", *drawn, job=real) == 0
    assert "by RDP for the best alone, of a geometric number of trials (expected 2)" in (
        "".join(heliotrope("privacy", "ledger=ledger.jsonl")[1])
    )
    assert type_("federated", *plain[3:], "privacy.selection=poisson", job=real) == 2
    assert "privacy.selection=poisson is of a sweep" in capsys.readouterr().err
