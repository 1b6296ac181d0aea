"""`heliotrope privacy`: epsilon of a configured run, and the noise that targets take."""

from __future__ import annotations

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent, pld

from federated.privacy.record import Record
from heliotrope.cli import main
from heliotrope.commands import privacy
from heliotrope.commands.privacy import plan_of
from heliotrope.commands.silos import PlansSilos
from heliotrope.privacy.accountant import Mechanism
from tests.support import compose

_CENTRAL = (
    "federated/privacy=central",
    "federated.privacy.noise_multiplier=2",
    "federated.partition.clients=40",
    "federated.clients_per_round=15",
    "federated.rounds=6",
)
_DPSGD = ("distributed/privacy=dpsgd", "distributed.privacy.noise_multiplier=2")


def test_a_federated_plan_counts_clients_and_rounds() -> None:
    plan = plan_of(compose("federated", *_CENTRAL), "federated")
    assert plan is not None
    assert plan.mechanism == Mechanism("poisson", 1.0, 15, 40)
    assert (plan.length, plan.releases) == (6, 1)
    larger = plan.scaled(2, 4)
    assert larger is not None
    assert (larger.mechanism.cohort, larger.length) == (30, 24)
    assert plan.scaled(4, 1) is None, "more clients than there are"
    planted = plan_of(compose("federated", *_CENTRAL, "audit.canaries=7"), "federated")
    assert planted is not None
    assert planted.mechanism.population == 47
    fixed = plan_of(
        compose("federated", *_CENTRAL, "federated.privacy.sampling=fixed"), "federated"
    )
    assert fixed is not None
    assert fixed.mechanism.adjacency == "replace-one"


def test_a_distributed_plan_counts_examples_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    run = compose("distributed", *_DPSGD, "distributed.batch_size=100", "distributed.epochs=3")
    plan = plan_of(run, "distributed")
    assert plan is not None
    count = plan.mechanism.population
    assert plan.mechanism == Mechanism("poisson", 1.0, 100, count)
    assert (plan.length, plan.releases) == (3, -(-count // 100))
    planted = plan_of(compose("distributed", *_DPSGD, "audit.canaries=7"), "distributed")
    assert planted is not None
    assert planted.mechanism.population == count + 7
    larger = plan.scaled(2, 1)
    assert larger is not None
    assert larger.releases == -(-count // 200)
    asked: list[object] = []
    monkeypatch.setattr(privacy, "noise_for", lambda *given, **_: asked.extend(given) or 1.5)
    assert plan.noise(8.0, 1e-4) == 1.5
    assert asked == [plan.mechanism, 3 * plan.releases, 1e-4, 8.0, ()]


def test_both_modes_are_told_of_and_neither_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(privacy, "noise_for", lambda *_, **__: 1.25)
    assert main(["privacy", *_CENTRAL, *_DPSGD, "federated.privacy.target_epsilon=5"]) == 0
    said = capsys.readouterr().out
    assert "federated: privacy: noise 2 times the sensitivity; after round 6 epsilon" in said
    assert "distributed: privacy: noise 2 times the sensitivity; after epoch" in said
    assert "1.25" in said
    assert main(["privacy"]) == 2
    assert "federated/privacy=central" in capsys.readouterr().err


def test_each_silo_has_a_row_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["experiment=heart", "federated/privacy=record", "federated.batch_size=64"]
    given += ["federated.privacy.noise_multiplier=4", "federated.privacy.delta=0.001"]
    assert main(["privacy", *given]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert isinstance(Record(1.0, 4.0, None, None), PlansSilos)
    (cleveland,) = (row for row in rows if "Cleveland" in row)
    assert [cell for cell in cleveland if cell != "│"][:6] == [
        "Cleveland",
        "215",
        "64",
        "4",
        "10",
        "4",
    ]
    once = PoissonSampledDpEvent(64 / 215, GaussianDpEvent(4.0))
    spent = pld.PLDAccountant().compose(SelfComposedDpEvent(once, 40)).get_epsilon(0.001)
    assert f"{spent:.3f}" in cleveland

    limited = ["federated.privacy.target_epsilon=1", "federated.clients_per_round=3"]
    assert main(["privacy", *given, *limited]) == 0
    said = capsys.readouterr().out
    rounds = {
        name: int(next(line for line in said.splitlines() if name in line).split("│")[5])
        for name in ("Cleveland", "Long Beach", "Zurich and Basel")
    }
    assert rounds["Zurich and Basel"] == 2
    assert rounds["Long Beach"] == 3
    assert rounds["Cleveland"] == 6
