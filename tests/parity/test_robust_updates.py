"""Robust rules are given clients' updates themselves: it is as if they came in messages."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, MetricRecord

from federated.components import build_components
from federated.job import run_job
from federated.strategies.robust import FedMedian, RobustStrategy
from tests.federated_runs import SMALL, assert_same_end
from tests.support import compose

pytestmark = pytest.mark.usefixtures("no_report")

_BAD = "federated.strategy.num_malicious_nodes=1"
_RULES = {
    "fedmedian": ("federated.bucket_size=2",),
    "fedtrimmedavg": (),
    "multikrum": (_BAD, "federated.strategy.num_nodes_to_select=3"),
    "geometric_median": (),
    "centered_clipping": (),
    "fltrust": ("federated.strategy.root_examples=30",),
}


@pytest.mark.parametrize(("rule", "more"), _RULES.items())
def test_a_rule_gives_the_same_for_updates_and_for_messages(
    rule: str, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*SMALL, f"federated/strategy={rule}", *more, "federated/attack=sign_flip")
    run_job(compose("federated", *keys, "federated.rounds=2"), tmp_path / "updates")
    monkeypatch.setattr(RobustStrategy, "takes_updates", False)
    run_job(compose("federated", *keys, "federated.rounds=2"), tmp_path / "messages")
    assert_same_end(tmp_path / "updates", tmp_path / "messages")


def test_an_update_that_is_not_finite_is_left_out_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What attackers agree on is beyond the largest float."""
    keys = (*SMALL, "federated/strategy=fedmedian", "federated/attack=ipm", "seed=2")
    run = compose("federated", *keys, "federated.attack.tau=1e42", "federated.rounds=1")
    caplog.set_level(logging.WARNING)
    run_job(run, tmp_path / "updates")
    assert "update is not finite" in caplog.text
    monkeypatch.setattr(RobustStrategy, "takes_updates", False)
    run_job(run, tmp_path / "messages")
    assert_same_end(tmp_path / "updates", tmp_path / "messages")


class _Own(FedMedian):
    def aggregate_train(self, *_: object) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return None, None


def test_a_rule_with_an_aggregation_of_its_own_has_its_messages() -> None:
    strategy = build_components(compose("federated", "federated/strategy=fedmedian")).strategy
    assert isinstance(strategy, FedMedian)
    assert strategy.takes_updates
    assert not _Own.__new__(_Own).takes_updates
