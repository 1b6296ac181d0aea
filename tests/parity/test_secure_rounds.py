"""A run under secure aggregation: the plain run, to the step of rounding, and nothing but sums."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from federated.engine.context import prepared_for
from federated.job import run_job
from federated.population import Population
from federated.protection.record import least_cohort
from federated.secure_aggregation.messages import (
    Advertisement,
    EncryptedShares,
    MaskedInput,
    RevealedShares,
    Vector,
)
from federated.secure_aggregation.server import Server
from federated.secure_rounds import SecureRounds
from heliotrope.data import Dataset, Examples, Partition
from heliotrope.errors import ConfigError, HeliotropeError, SecureAggregationError
from heliotrope.runs import checkpoint
from tests.support import compose, with_images

pytestmark = pytest.mark.usefixtures("no_report")

_SMALL = (
    "model.hidden=[8]",
    "federated.clients_per_round=5",
    "federated.cpus_per_worker=1",
    "federated.checkpoint_every=2",
    "federated/secure_aggregation=secagg",
    "seed=5",
)
_PLAIN = "federated/secure_aggregation=none"
_PRIVATE = (
    "data.fit=none",
    "federated/privacy=central",
    "federated.privacy.clip=0.3",
    "federated.privacy.noise_multiplier=0.7",
)


def _train(directory: Path, rounds: int, *more: str) -> dict[str, Any]:
    run_job(compose("federated", *_SMALL, f"federated.rounds={rounds}", *more), directory)
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return result


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.latest(directory / "checkpoints", pytest.fail)
    assert found is not None
    return dict(found.model)


def _assert_same(one: Path, other: Path) -> None:
    theirs = _weights(other)
    for name, value in _weights(one).items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedprox", "flower_fedavg", "scaffold"])
def test_a_round_is_the_plain_one_to_the_step_of_rounding(strategy: str, tmp_path: Path) -> None:
    chosen = f"federated/strategy={strategy}"
    secret = _train(tmp_path / "secret", 1, chosen)
    plain = _train(tmp_path / "plain", 1, chosen, _PLAIN)
    bound = secret["secure_aggregation"]["step"] * 5 / 2 / 100  # of 5 clients of 100 at least
    rate = {"fedadam": 1e3}.get(strategy, 1.0)  # a server optimizer may magnify it
    for name, value in _weights(tmp_path / "plain").items():
        off = float((_weights(tmp_path / "secret")[name] - value).abs().max())
        assert off <= rate * (bound + 1e-7), (name, off)
    assert secret["metrics"]["test/loss"] == pytest.approx(plain["metrics"]["test/loss"], rel=1e-3)
    for key in ("steps", "examples_seen", "bytes_up", "bytes_down"):
        assert secret[key] == plain[key], key
    assert plain.get("secure_aggregation") is None


def test_the_sum_is_exactly_that_of_the_rounded_updates_of_the_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from federated.secure_aggregation import client, session

    plain: list[Vector] = []
    opened: list[Vector] = []
    mask, total = client.Masks.masked, session.Session.total

    def masked(self: client.Masks, vector: Vector) -> MaskedInput:
        plain.append(vector.copy())
        return mask(self, vector)

    def opening(self: session.Session, lost: Any) -> Any:
        found = total(self, lost)
        opened.append(found[0].copy())
        return found

    monkeypatch.setattr(client.Masks, "masked", masked)
    monkeypatch.setattr(session.Session, "total", opening)
    _train(tmp_path, 1)
    assert len(plain) == 5
    values = sum(vector.values.astype(object) for vector in plain) % 2**32
    assert np.array_equal(values.astype(np.uint32), opened[0].values)
    assert opened[0].values.any()


def test_the_same_command_gives_the_same_digits_whatever_the_keys(tmp_path: Path) -> None:
    _train(tmp_path / "one", 3)
    _train(tmp_path / "other", 3)
    _assert_same(tmp_path / "one", tmp_path / "other")


def test_the_graph_does_not_change_the_sum(tmp_path: Path) -> None:
    _train(tmp_path / "complete", 2)
    _train(tmp_path / "sparse", 2, "federated.secure_aggregation.neighbours=2")
    _assert_same(tmp_path / "complete", tmp_path / "sparse")


@pytest.mark.parametrize(
    "private", [(), (*_PRIVATE, "federated/privacy=adaptive", "federated.privacy.count_noise=1")]
)
def test_a_run_continued_equals_one_in_one_go(private: tuple[str, ...], tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", 4, *private)
    _train(tmp_path / "parts", 2, *private)
    parts = _train(tmp_path / "parts", 4, *private, "resume=true")
    _assert_same(tmp_path / "whole", tmp_path / "parts")
    assert parts["privacy"] == whole["privacy"]
    assert parts["secure_aggregation"] == whole["secure_aggregation"]


@pytest.mark.parametrize("kind", ["sequential", "captured"])
def test_every_way_of_training_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    _train(tmp_path / "batched", 2, *_PRIVATE, "federated.client_training=batched")
    _train(tmp_path / kind, 2, *_PRIVATE, f"federated.client_training={kind}")
    other = _weights(tmp_path / kind)
    for name, value in _weights(tmp_path / "batched").items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=5e-6)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All that servers are given."""
    messages: list[Any] = []
    for name in ("advertisement", "shares", "input", "revealed"):
        before = getattr(Server, f"receive_{name}")

        def receive(self: Server, message: Any, before: Any = before) -> None:
            kept = message
            if isinstance(message, MaskedInput):
                kept = MaskedInput(message.client, message.vector.copy())
            messages.append(kept)
            before(self, message)

        monkeypatch.setattr(Server, f"receive_{name}", receive)
    return messages


def test_the_server_of_a_run_is_sent_masked_inputs_and_nothing_of_a_client_besides(
    seen: list[Any], tmp_path: Path
) -> None:
    _train(tmp_path, 1)
    kinds = [Advertisement, EncryptedShares, MaskedInput, RevealedShares]
    assert [type(message) for message in seen] == [kind for kind in kinds for _ in range(5)]
    for message in seen[10:15]:
        high = message.vector.values >> 28  # of small updates it would be 0 or 15
        counts = np.bincount(high, minlength=16)
        assert counts.max() < 3 * counts.mean()
        assert (message.vector.numbers > 2**40).all()  # as counts and losses would not be


@pytest.mark.parametrize("cohort", [0, 1, 2, 9])
def test_a_small_random_cohort_is_filled_up_so_that_it_does_not_show(
    cohort: int, seen: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = list(range(cohort))
    monkeypatch.setattr(Population, "draw_each", lambda *_: who)
    # Settings that change sums change the noise too: here it is to be the same.
    monkeypatch.setattr("federated.protection.central.stamp_of", lambda *_: "alike")
    _train(tmp_path / "secret", 1, *_PRIVATE)
    inputs = [message for message in seen if isinstance(message, MaskedInput)]
    assert len(inputs) == (0 if not cohort else max(5, cohort))
    _train(tmp_path / "plain", 1, *_PRIVATE, _PLAIN)
    for name, value in _weights(tmp_path / "plain").items():  # the same sum, the same noise
        torch.testing.assert_close(_weights(tmp_path / "secret")[name], value, rtol=0, atol=1e-6)


def test_result_json_says_who_is_trusted_with_what(tmp_path: Path) -> None:
    secret = _train(tmp_path / "secret", 1, *_PRIVATE)
    plain = _train(tmp_path / "plain", 1, *_PRIVATE, _PLAIN)
    said, before = (result["privacy"]["assumptions"] for result in (secret, plain))
    assert any("clipping trusts the clients" in each for each in said)
    assert any("sees the exact sum of each round" in each for each in said)
    assert not any("sees each client's update" in each for each in said)
    assert any("sees each client's update" in each for each in before)
    assert secret["privacy"]["epsilon"] == plain["privacy"]["epsilon"]
    told = secret["secure_aggregation"]
    assert (told["threshold"], told["neighbours"], told["shares"], told["bits"]) == (4, 4, 4, 32)


@pytest.mark.parametrize("kind", ["central", "local", "record"])
def test_the_step_that_is_told_is_that_of_the_rounds(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    begin = SecureRounds.begin

    def noted(*arguments: Any) -> Any:
        found = begin(*arguments)
        used.append(found.quantizer.step)
        return found

    monkeypatch.setattr(SecureRounds, "begin", noted)
    privacy = (f"federated/privacy={kind}", "federated.privacy.noise_multiplier=1")
    clip = () if kind == "record" else ("federated.privacy.clip=0.1",)
    told = _train(tmp_path / "run", 1, "data.fit=none", *privacy, *clip)["secure_aggregation"]
    assert used == [told["step"]]


def test_the_range_has_room_for_the_noise_of_clients(tmp_path: Path) -> None:
    noisy = ("data.fit=none", "federated/privacy=local", "federated.privacy.noise_multiplier=4")
    _train(tmp_path / "fits", 1, *noisy)
    events = map(json.loads, (tmp_path / "fits" / "metrics.jsonl").read_text().splitlines())
    assert not [event for event in events if event["event"] == "failure"]
    with pytest.raises(ConfigError, match=r"range=4, .* up to 65.*range=null"):
        _train(tmp_path / "small", 1, *noisy, "federated.secure_aggregation.range=4")


@pytest.mark.parametrize("kind", ["local", "record"])
def test_a_client_whose_loss_is_no_number_sends_as_much_noise_as_the_others(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example of a client protects itself, or all of them: a failure would tell of them."""

    def spoiled(partition: Partition, dataset: Dataset) -> Examples:
        mine = partition.indices[partition.offsets[3] : partition.offsets[4]]

        def spoil(images: torch.Tensor) -> torch.Tensor:
            images = images.clone()
            images[torch.from_numpy(mine)] = math.nan
            return images

        return with_images(prepared_for(partition, dataset), spoil)

    monkeypatch.setattr("federated.components.prepared_for", spoiled)
    private = ("data.fit=none", f"federated/privacy={kind}", "federated.privacy.noise_multiplier=1")
    # So many clients: all are drawn, and each has its turn.
    everybody = ("federated.partition.clients=5", "federated.privacy.delta=1e-3")
    _train(tmp_path, 1, *private, *everybody, "federated/partition=iid")
    events = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert not [event for event in events if event["event"] == "failure"]


def test_clients_in_turn_of_whom_too_few_are_left_for_a_round_are_refused(tmp_path: Path) -> None:
    turns = ("federated/privacy=ftrl", "federated.privacy.noise_multiplier=4", "data.fit=none")
    four = "federated.clients_per_round=4"  # of ten: two are left for the third round
    with pytest.raises(ConfigError, match=r"leaves 2 for the last round .*clients_per_round=5,"):
        _train(tmp_path / "run", 3, *turns, four)
    _train(tmp_path / "short", 2, *turns, four)


def test_a_run_ends_where_fewer_clients_have_budget_than_a_sum_takes() -> None:
    privacy = ("federated/privacy=record", "federated.privacy.noise_multiplier=1")
    run = compose("federated", *_SMALL, *privacy)
    assert least_cohort(run, 10) == 4


def _failing(monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    from federated.engine import thread_lane

    before = thread_lane.ThreadLane._one

    def one(self: Any, weights: Any, instruction: Any, client: int, *more: Any) -> Any:
        done = before(self, weights, instruction, client, *more)
        if instruction.masking is not None and client in sorted(instruction.masking.masks)[:lost]:
            raise RuntimeError("the disk is full")
        return done

    monkeypatch.setattr(thread_lane.ThreadLane, "_one", one)


_LOSING = ("federated.quorum=0.2", "federated.client_training=sequential")


def test_clients_that_fail_are_drop_outs_up_to_the_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*_LOSING, "federated.secure_aggregation.threshold=3")
    _failing(monkeypatch, 2)
    _train(tmp_path / "secret", 1, *keys)
    written = (tmp_path / "secret" / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in written]
    reasons = [event["reason"] for event in events if event["event"] == "failure"]
    assert len(reasons) == 2
    assert all("the disk is full" in reason for reason in reasons)
    _failing(monkeypatch, 3)
    with pytest.raises(SecureAggregationError, match=r"2 of 5 clients are left.*the disk is full"):
        _train(tmp_path / "lost", 1, *keys)


def test_a_client_that_goes_beyond_the_range_is_named_with_the_weight_and_the_remedy(
    tmp_path: Path,
) -> None:
    with pytest.raises(HeliotropeError, match=r"range=1e-06, which may be raised") as caught:
        _train(tmp_path, 1, "federated.secure_aggregation.range=1e-6")
    assert "weight: it went" in str(caught.value)
    assert "federated.secure_aggregation.range" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("federated/strategy=krum",), "federated/strategy=krum needs each client's update"),
        (("federated/strategy=fedmedian",), "federated/strategy=fedmedian needs each"),
        (("federated/strategy=qfedavg",), "federated/strategy=qfedavg needs each"),
        (("federated/strategy=norm_bounding",), "federated/strategy=norm_bounding needs each"),
        (("federated/attack=alie",), "with federated/attack=alie needs each"),
        (("federated.reduce=none",), "federated.reduce=auto"),
        (("federated.secure_aggregation.threshold=6",), "threshold=6 is more than federated"),
        (("federated.secure_aggregation.threshold=2",), "threshold=2 is no more than half"),
        (("federated.secure_aggregation.neighbours=5",), "neighbours=4 or less"),
        (("federated.secure_aggregation.neighbours=1",), "neighbours=2 or more"),
        (("federated.secure_aggregation.bits=24",), "bits=24 is not 16, 32 or 64"),
        (("federated.secure_aggregation.range=0",), "range=0 must be above 0"),
        (
            ("federated.secure_aggregation.range=1e308",),
            "range=1e+308 must be above 0, and at most",
        ),
        (("federated.clients_per_round=1",), "the sum of one client is its update"),
        ((*_PRIVATE, "federated.secure_aggregation.range=0.1"), "range=0.1, but how far"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_any_work(
    more: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        _train(tmp_path / "run", 1, *more)
    assert named in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("clients", [2, 3])
def test_two_and_three_clients_a_round(clients: int, tmp_path: Path) -> None:
    few = f"federated.clients_per_round={clients}"
    _train(tmp_path / "secret", 1, few)
    _train(tmp_path / "plain", 1, few, _PLAIN)
    for name, value in _weights(tmp_path / "plain").items():
        torch.testing.assert_close(_weights(tmp_path / "secret")[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_run_on_ray_workers_is_one_in_this_process(tmp_path: Path) -> None:
    _train(tmp_path / "here", 2, *_PRIVATE)
    _train(tmp_path / "there", 2, *_PRIVATE, "federated.pool=ray", "federated.workers=2")
    _assert_same(tmp_path / "here", tmp_path / "there")
