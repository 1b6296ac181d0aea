"""A protected run: the same however it is trained, after any crash; promises are checked."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from federated.components import build_components
from federated.job import run_job
from federated.population import Population
from federated.privacy.central import Central
from federated.privacy.names import privacy_of
from federated.protection.central import NoisySum
from heliotrope.config import Run
from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import Mechanism, epsilon
from heliotrope.runs import checkpoint
from tests.support import compose

pytestmark = pytest.mark.usefixtures("no_report")

_SMALL = (
    "model.hidden=[8]",
    "data.fit=none",
    "federated.clients_per_round=4",
    "federated.cpus_per_worker=1",
    "federated.checkpoint_every=2",
    "federated/privacy=central",
    "federated.privacy.clip=0.3",
    "federated.privacy.noise_multiplier=0.7",
    "seed=5",
)


def _run(rounds: int, *more: str) -> Run:
    return compose("federated", *_SMALL, f"federated.rounds={rounds}", *more)


def _train(directory: Path, rounds: int, *more: str) -> dict[str, Any]:
    run_job(_run(rounds, *more), directory)
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return result


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.latest(directory / "checkpoints", pytest.fail)
    assert found is not None
    return dict(found.model)


@pytest.mark.parametrize("kind", ["sequential", "captured"])
def test_every_way_of_training_gives_the_same_private_model(kind: str, tmp_path: Path) -> None:
    _train(tmp_path / "batched", 3, "federated.client_training=batched")
    _train(tmp_path / kind, 3, f"federated.client_training={kind}")
    one, other = _weights(tmp_path / "batched"), _weights(tmp_path / kind)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=2e-6)


def test_a_private_run_continued_equals_one_in_one_go_and_forgets_nothing(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", 5)
    _train(tmp_path / "parts", 2)
    parts = _train(tmp_path / "parts", 5, "resume=true")
    for name, value in _weights(tmp_path / "whole").items():
        assert torch.equal(value, _weights(tmp_path / "parts")[name])
    assert parts["privacy"] == whole["privacy"]
    mechanism = Mechanism("poisson", 0.7, 4, 10)
    spent = epsilon([(mechanism, 5)], 10**-1.1)
    assert whole["privacy"]["epsilon"] == pytest.approx(spent.value)
    assert whole["privacy"]["releases"] == 5
    lost = tmp_path / "parts" / "privacy.jsonl"
    lost.unlink()  # the checkpoint knows what was spent
    assert _train(tmp_path / "parts", 6, "resume=true")["privacy"]["releases"] == 6


def test_rounds_after_the_last_checkpoint_are_done_again_and_paid_once(tmp_path: Path) -> None:
    limited = (
        "federated.privacy.target_epsilon=3",
        "federated.privacy.sampling=fixed",
        "federated.privacy.noise_multiplier=1.4",
        "federated.checkpoint_every=1",
    )
    whole = _train(tmp_path / "whole", 9, *limited)
    assert 3 < whole["rounds"] < 9
    _train(tmp_path / "cut", 9, *limited)
    saved = sorted((tmp_path / "cut" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for path in saved[1:]:  # as if the run had been killed before it could save its last rounds
        shutil.rmtree(path)
    cut = _train(tmp_path / "cut", 9, *limited, "resume=true")
    assert cut["rounds"] == whole["rounds"]
    assert cut["privacy"] == whole["privacy"]
    for name, value in _weights(tmp_path / "whole").items():
        assert torch.equal(value, _weights(tmp_path / "cut")[name])


def test_a_round_that_is_done_again_with_fresh_noise_is_charged_again(tmp_path: Path) -> None:
    timed = "federated.client_timeout=60"  # which clients are given up is not the same twice
    _train(tmp_path, 3, timed)
    newest = max((tmp_path / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
    for path in (tmp_path / "checkpoints").iterdir():
        if path == newest:
            path.rename(tmp_path / "gone")
    assert _train(tmp_path, 3, timed, "resume=true")["privacy"]["releases"] > 3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("noise_multiplier=1", "noise_multiplier=2"),
        # A target takes as much noise as the rounds need; here both end after the first.
        pytest.param(
            "target_epsilon=6", "target_epsilon=6 federated.rounds=2", marks=pytest.mark.slow
        ),
    ],
)
def test_two_runs_of_one_seed_do_not_share_their_noise(
    first: str, second: str, tmp_path: Path
) -> None:
    ends = ("target.metric=test/loss", "target.value=99", "federated.privacy.noise_multiplier=null")
    went = []
    for name, more in (("first", first), ("second", second)):
        result = _train(tmp_path / name, 1, *ends, *f"federated.privacy.{more}".split())
        assert result["rounds"] == 1
        weights, begun = _weights(tmp_path / name), build_components(_run(1)).context.global_weights
        went.append(torch.cat([(weights[n] - begun[n]).flatten() for n in sorted(begun)]))
    # Clipped updates are far below the noise. If that were the same but for its strength, somebody
    # with both models could take it away: 2 * first - second would be the sum of updates itself.
    alike = torch.corrcoef(torch.stack(went))[0, 1]
    assert abs(float(alike)) < 0.3


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_two_runs_of_one_seed_do_not_share_their_cohorts(sampling: str, tmp_path: Path) -> None:
    # What a project's ledger adds up is of cohorts drawn anew. If 16 trials had the same ones, of
    # 1 % of the clients each and with noise 1, ten rounds would spend 22.6 at delta 1e-5, where
    # 160 rounds of other cohorts spend 0.84.
    drawn = []
    settings = ("noise_multiplier=1", "noise_multiplier=1", "noise_multiplier=2", "clip=0.1")
    for number, own in enumerate(settings):
        run = _run(9, f"federated.privacy.sampling={sampling}", f"federated.privacy.{own}")
        privacy, context = privacy_of(run.federated), build_components(run).context
        assert isinstance(privacy, Central)
        with closing(NoisySum(privacy, run, context, tmp_path / f"{number}.jsonl")) as protection:
            protection.begin(0, {})
            drawn.append([protection.draw(n) for n in range(1, 10)])
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] != drawn[3] != drawn[0]


def test_a_round_nobody_was_drawn_for_is_a_round_of_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Population.draw_each
    monkeypatch.setattr(
        Population,
        "draw_each",
        lambda self, number, *how: [] if number == 2 else before(self, number, *how),
    )
    result = _train(tmp_path, 3)
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event["clients"] for event in events if event["event"] == "train"][1] == 0
    assert result["privacy"]["releases"] == 3


def test_noise_follows_from_a_target_and_a_budget_ends_the_run(tmp_path: Path) -> None:
    fits = _train(
        tmp_path / "fits",
        4,
        "federated.privacy.noise_multiplier=null",
        "federated.privacy.target_epsilon=6",
    )
    assert 5.5 < fits["privacy"]["epsilon"] <= 6
    assert fits["rounds"] == 4
    limited = (
        "federated.privacy.target_epsilon=3",
        "federated.privacy.sampling=fixed",
        "federated.privacy.noise_multiplier=1",
    )
    ends = _train(tmp_path / "ends", 9, *limited)
    assert 0 < ends["rounds"] < 9
    assert ends["privacy"]["epsilon"] <= 3
    more = _train(tmp_path / "ends", 12, *limited, "resume=true")
    assert more["rounds"] == ends["rounds"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("federated/strategy=krum",), "federated/strategy=krum"),
        (("federated/strategy=fedmedian",), "federated/strategy=fedmedian"),
        (("federated/strategy=qfedavg",), "federated/strategy=qfedavg"),
        (("federated/strategy=scaffold",), "federated/strategy=scaffold"),
        (("federated/strategy=flower_fedavg",), "federated/strategy=flower_fedavg"),
        (("federated.reduce=none",), "federated.reduce=auto"),
        (("federated.clip_update_norm=1",), "federated.clip_update_norm=1"),
        (("data.fit=training",), "data.fit=training"),
        (("federated.privacy.delta=0.2",), "federated.privacy.delta=0.2"),
        (("federated.privacy.sampling=shuffle",), "federated.privacy.sampling=shuffle"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused(
    more: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        _train(tmp_path / "run", 2, *more)
    assert not (tmp_path / "run").exists()
