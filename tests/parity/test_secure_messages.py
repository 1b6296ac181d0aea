"""Secure aggregation over Flower's messages: its own strategies, unmodified, and real records."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedAvgM
from flwr.supercore.run import Run as FlowerRun

from federated.flower.messages import (
    become_server,
    content_of,
    read_arrays,
    stamp,
    to_record,
)
from federated.flower.secure_client import secure_aggregation_mod
from federated.flower.secure_codec import SECURE, decoded, encoded, masked_input, record_of
from federated.flower.secure_grid import SecureGrid
from federated.secure_aggregation.client import Client
from federated.secure_aggregation.messages import (
    Advertisement,
    EncryptedShares,
    ForwardedShares,
    MaskedInput,
    RefusedMessageError,
    RevealedShares,
    Roster,
    Setup,
    Survivors,
    Vector,
)
from federated.secure_aggregation.quantization import Quantizer
from federated.secure_aggregation.settings import SecAgg
from heliotrope.errors import SecureAggregationError

_START = {"w": torch.linspace(-1, 1, 12).view(3, 4), "b": torch.zeros(1), "n": torch.tensor(7)}
_KEYS = SecAgg(None, None, 32, 4.0)


def _app(*, mod: bool = True) -> ClientApp:
    """Clients that go their own way, by their number, and have as many examples."""
    app = ClientApp(mods=[secure_aggregation_mod] if mod else [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        weights, _ = content_of(message)
        client = message.metadata.dst_node_id
        generator = torch.Generator().manual_seed(client)
        moved = {
            name: value + torch.randn(value.shape, generator=generator) * 0.1
            if value.is_floating_point()
            else value + client
            for name, value in weights.items()
        }
        metrics = MetricRecord(
            {"num-examples": 10 + client, "train_loss": 0.5 * client, "other": 3.0}
        )
        return Message(
            RecordDict({"arrays": to_record(moved), "metrics": metrics}), reply_to=message
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "found": float(message.metadata.dst_node_id)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class _Loopback(Grid):
    """Hands messages to apps as bytes, and their contexts too, as Flower does between processes.

    `meddle` may change, or take away, the reply of a client to a message of some kind.
    """

    def __init__(self, app: ClientApp, clients: Iterable[int]) -> None:
        become_server()
        self._app = app
        self.contexts = {client: Context(1, client, {}, RecordDict(), {}) for client in clients}
        self.meddle: Callable[[str, Message], Message | None] = lambda _, reply: reply
        self.kinds: list[str] = []
        self.replies: list[RecordDict] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        replies = []
        for message in messages:
            stamp(message)
            client = message.metadata.dst_node_id
            context = self.contexts[client]
            message.content = _over_the_wire(message.content)
            kind = str(message.content.config_records.get(SECURE, ConfigRecord()).get("kind"))
            self.kinds.append(kind)
            reply = self._app(message, context)
            context.state = _over_the_wire(context.state)
            if not reply.has_error():
                reply.content = _over_the_wire(reply.content)
                self.replies.append(reply.content)
            changed = self.meddle(kind, reply)
            if changed is not None:
                replies.append(changed)
        return replies

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def create_message(self, *arguments: Any, **more: Any) -> Message:
        raise NotImplementedError

    push_messages = pull_messages = create_message  # type: ignore[assignment]

    def set_run(self, run: FlowerRun) -> None:
        raise NotImplementedError

    @property
    def run(self) -> FlowerRun:
        raise NotImplementedError


def _over_the_wire(content: RecordDict) -> RecordDict:
    wire = recorddict_to_proto(content).SerializeToString()
    return recorddict_from_proto(type(recorddict_to_proto(content)).FromString(wire))


def _rounds(
    grid: Grid, rounds: int = 2, strategy: type[FedAvg] = FedAvg
) -> dict[str, torch.Tensor]:
    chosen = strategy(fraction_train=1.0, fraction_evaluate=1.0, min_available_nodes=2)
    result = chosen.start(grid, to_record(_START), num_rounds=rounds)
    assert set(result.train_metrics_clientapp[rounds]) >= {"train_loss"}
    return read_arrays(result.arrays)


@pytest.mark.parametrize("strategy", [FedAvg, FedAvgM])
@pytest.mark.parametrize("keys", [_KEYS, SecAgg(4, 2, 64, 1.0)])
def test_flowers_strategies_run_over_it_unmodified(strategy: type[FedAvg], keys: SecAgg) -> None:
    clients = (3, 12, 8, 1, 5)
    app = _app()
    secret = _rounds(SecureGrid(_Loopback(app, clients), keys, most_weight=30), 2, strategy)
    plain = _rounds(_Loopback(_app(mod=False), clients), 2, strategy)
    for name in ("w", "b"):  # of counters, Flower's own average makes fractions
        torch.testing.assert_close(secret[name].double(), plain[name].double(), rtol=0, atol=1e-5)
        assert not torch.equal(secret[name], _START[name])


def test_what_leaves_a_client_is_keys_shares_and_a_masked_vector_and_no_metric() -> None:
    grid = _Loopback(_app(), (1, 2, 3))
    secure = SecureGrid(grid, _KEYS, most_weight=30)
    _rounds(secure, 1)
    training = [reply for reply in grid.replies if SECURE in reply.config_records]
    assert len(training) == 12
    for reply in training:
        assert list(reply) == [SECURE]
    kinds = ["Setup", "Roster", "ForwardedShares", "Survivors"]
    assert grid.kinds[:12] == [kind for kind in kinds for _ in range(3)]
    assert not any("client" in context.state for context in grid.contexts.values())


@pytest.mark.parametrize("kind", ["Setup", "Roster", "ForwardedShares", "Survivors"])
def test_lost_clients_are_survived_up_to_the_threshold_at_each_stage(kind: str) -> None:
    for lost, survives in ((2, True), (3, False)):
        grid = _Loopback(_app(), range(1, 8))
        secure = SecureGrid(grid, SecAgg(5, None, 32, 4.0), most_weight=30)

        def meddle(asked: str, reply: Message, lost: int = lost) -> Message | None:
            return None if asked == kind and reply.metadata.src_node_id <= lost else reply

        grid.meddle = meddle
        if survives:
            _rounds(secure, 1)
            assert [failure.client for failure in secure.failures] == [1, 2]
        else:
            with pytest.raises(SecureAggregationError, match=f"{7 - lost} of 7 clients are left"):
                _rounds(secure, 1)


def test_replies_that_are_not_of_the_protocol_lose_their_sender_by_name() -> None:
    def wrong_kind(asked: str, reply: Message) -> Message:
        if reply.metadata.src_node_id == 2 and asked == "Roster":
            reply.content[SECURE] = encoded(Survivors((1,), ()))
        return reply

    def other_client(asked: str, reply: Message) -> Message:
        if reply.metadata.src_node_id == 2 and asked == "Setup":
            reply.content[SECURE]["client"] = 3
        return reply

    def short(asked: str, reply: Message) -> Message:
        if reply.metadata.src_node_id == 2 and asked == "ForwardedShares":
            reply.content[SECURE]["values"] = b"123"
        return reply

    def nothing(asked: str, reply: Message) -> Message:
        if reply.metadata.src_node_id == 2 and asked == "Setup":
            reply.content = RecordDict()
        return reply

    for meddle, named in (
        (wrong_kind, "kind Survivors where EncryptedShares is due"),
        (other_client, "it says to be 3"),
        (short, "values of 3 bytes"),
        (nothing, "mods=[secure_aggregation_mod]"),
    ):
        grid = _Loopback(_app(), range(1, 6))
        grid.meddle = meddle
        secure = SecureGrid(grid, SecAgg(4, None, 32, 4.0), most_weight=30)
        _rounds(secure, 1)
        (failure,) = secure.failures
        assert failure.client == 2
        assert named in failure.reason


def test_shares_that_are_altered_on_their_way_through_the_server_are_refused_by_name() -> None:
    def meddle(asked: str, reply: Message) -> Message:
        if asked == "Roster" and reply.metadata.src_node_id == 2:
            shares = reply.content[SECURE]["shares.bytes"]
            at = reply.content[SECURE]["shares.clients"].index(4)
            shares[at] = shares[at][:-1] + bytes([shares[at][-1] ^ 1])
        return reply

    grid = _Loopback(_app(), range(1, 6))
    grid.meddle = meddle
    secure = SecureGrid(grid, SecAgg(4, None, 32, 4.0), most_weight=30)
    _rounds(secure, 1)
    (failure,) = secure.failures
    assert failure.reason.startswith("client 4 refuses: shares of client 2")


def test_a_client_beyond_the_bounds_is_lost_by_name() -> None:
    secure = SecureGrid(_Loopback(_app(), range(1, 6)), SecAgg(4, None, 32, 4.0), most_weight=14)
    _rounds(secure, 1)
    (failure,) = secure.failures
    assert failure.client == 5
    assert "it weighs 15, where 14 is the most" in failure.reason


def test_a_metric_that_clients_do_not_tell_is_named() -> None:
    secure = SecureGrid(_Loopback(_app(), (1, 2, 3)), _KEYS, 100, told=("loss",))
    with pytest.raises(SecureAggregationError, match="stage 3"):
        _rounds(secure, 1)
    assert {failure.client for failure in secure.failures} == {1, 2, 3}
    assert all("asks for the metric loss" in failure.reason for failure in secure.failures)


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"kind": "Survivors", "alive": [-1], "dropped": [1]}),
        ConfigRecord({"kind": "Survivors", "alive": [2**64], "dropped": [1]}),
        ConfigRecord({"kind": "ForwardedShares", "shares.clients": [-1], "shares.bytes": [b"x"]}),
    ],
    ids=str,
)
def test_a_number_that_no_client_has_is_refused(record: ConfigRecord) -> None:
    kind = {"Survivors": Survivors, "ForwardedShares": ForwardedShares}[str(record["kind"])]
    with pytest.raises(RefusedMessageError, match="a number that no client has"):
        decoded(kind, record)


def test_a_round_without_all_its_records_is_refused() -> None:
    setup = Setup(bytes(32), 2, 2, 32, 13, 7)
    message = Message(
        RecordDict({SECURE: encoded(setup)}), dst_node_id=1, message_type=MessageType.TRAIN
    )
    (reply,) = _Loopback(_app(), (1, 2)).send_and_receive([message])
    assert "a round without heliotrope.secure.quantizer" in str(reply.error)


def test_an_app_under_secure_aggregation_does_not_train_for_a_server_without() -> None:
    grid = _Loopback(_app(), (1, 2))
    message = Message(
        RecordDict({"arrays": to_record(_START), "config": ConfigRecord({"server-round": 1})}),
        dst_node_id=1,
        message_type=MessageType.TRAIN,
    )
    (reply,) = grid.send_and_receive([message])
    assert reply.has_error()
    assert "under secure aggregation only" in str(reply.error)


_MESSAGES = (
    Setup(bytes(32), 3, 4, 32, 100, 7),
    Quantizer(4.0, 32, 10, 5, 50, toward_zero=True),
    Advertisement(2**64 - 1, b"a" * 32, b"b" * 32),
    Roster((1, 2, 3), (Advertisement(1, b"a" * 32, b"b" * 32), Advertisement(3, b"", b"c"))),
    EncryptedShares(1, b"c" * 32, {2: b"x", 2**63: b"yy"}),
    ForwardedShares({}),
    ForwardedShares({1: b"z"}),
    Survivors((1, 2), ()),
    RevealedShares(5, {1: b"s"}, {}),
)


@pytest.mark.parametrize("message", _MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_survive_the_wire_and_mutilated_ones_are_refused(message: Any) -> None:
    record = _over_the_wire(RecordDict({"x": encoded(message)}))["x"]
    assert isinstance(record, ConfigRecord)
    assert decoded(type(message), record) == message
    wrong: tuple[Any, ...] = (None, "text", -1.5, [1.5], ["a"], b"", True, 7)
    for name in list(record):
        for value in wrong:
            broken = ConfigRecord({k: v for k, v in record.items() if k != name})
            if value is not None:
                broken[name] = value
            try:
                decoded(type(message), broken)
            except RefusedMessageError:
                continue
            assert type(value) is type(record[name])  # of the right type, and so a message


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_vectors_survive_the_wire_and_others_are_refused(bits: int) -> None:
    setup = replace(_MESSAGES[0], bits=bits, size=5, numbers=2)
    rng = np.random.default_rng(secrets.randbits(32))
    vector = Vector(rng.integers(0, 2**bits, 5, setup.dtype), rng.integers(0, 2**64, 2, np.uint64))
    record = _over_the_wire(RecordDict({"x": encoded(MaskedInput(3, vector))}))["x"]
    assert isinstance(record, ConfigRecord)
    found = masked_input(record, setup, 3).vector
    assert found.fits(setup)
    assert np.array_equal(found.values, vector.values)
    assert np.array_equal(found.numbers, vector.numbers)
    for other in (replace(setup, size=6), replace(setup, numbers=1)):
        with pytest.raises(RefusedMessageError, match="client 3 is refused"):
            masked_input(record, other, 3)
    with pytest.raises(RefusedMessageError, match="it says to be 3"):
        masked_input(record, setup, 4)


def test_a_client_that_is_put_away_between_stages_is_the_same() -> None:
    setup = replace(_MESSAGES[0], neighbours=1, threshold=2)
    one, other = Client(1, setup), Client(2, setup)
    advertised = [one.advertise(), other.advertise()]
    again = Client.restored(setup, dict(record_of(one.saved())))
    with pytest.raises(RefusedMessageError, match="does not follow"):
        again.advertise()
    sent = other.share_keys(Roster((1, 2), (advertised[0],)))
    again.share_keys(Roster((1, 2), (advertised[1],)))
    again = Client.restored(setup, dict(record_of(again.saved())))
    again.receive_shares(ForwardedShares({2: sent.shares[1]}))
    again = Client.restored(setup, dict(record_of(again.saved())))
    assert len(again.masks().keys) == 2
