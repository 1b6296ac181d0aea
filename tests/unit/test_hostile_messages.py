"""Messages that are not what was asked for: refused by the client's name, and the round goes on."""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import Strategy

from federated.flower.checked_grid import CheckedGrid
from federated.flower.messages import (
    become_server,
    content_of,
    evaluate_reply,
    read_arrays,
    stack_of,
    stamp,
    summed_evaluations,
    to_record,
)
from federated.strategies import ModelFacts
from federated.strategies.buffers import ParametersOnly
from federated.strategies.mean import FedAvg
from federated.strategies.qfedavg import QFedAvg
from federated.strategies.robust import FedMedian
from heliotrope.errors import MessageError, QuorumError
from tests.hostile import WEIGHTS, FakeGrid, failed, instruction, npy, reply
from tests.support import small_task

become_server()
FACTS = ModelFacts(frozenset({"w", "b"}), frozenset({"n"}), 1000, 5, frozenset({"w", "b"}))
ALL: dict[str, Any] = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self._mark),)


def of(dtype: str, shape: tuple[int, ...], data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype, shape, stype, data)


GOOD = npy(np.ones((2, 3), np.float32))
ODD_ARRAYS = {
    "objects": of("object", (1,), npy(np.array([{"a": 1}], object))),
    "objects that claim to be numbers": of("float32", (1,), npy(np.array([{"a": 1}], object))),
    "a negative size": of("float32", (-2, -3), GOOD),
    "a size that overflows": of("float32", (2**40, 2**40), GOOD),
    "a size of nothing by another that overflows": of("float32", (0, 2**62, 2**62), GOOD),
    "thousands of dimensions": of("float32", (2**62,) * 100_000, GOOD),
    "a longer length than there is": of("float32", (2, 3), GOOD[:-4]),
    "more bytes than there should be": of("float32", (2, 3), GOOD + b"1234"),
    "another type and half of the shape": of("float64", (1, 3), GOOD),
    "another shape of the same size": of("float32", (3, 2), GOOD),
    "an unknown way of writing": of("float32", (2, 3), pickle.dumps([1]), "pickle"),
    "records": of("f4,f4", (2, 3), GOOD),
    "no type": of("os.system", (2, 3), GOOD),
    "texts": of("<U1", (2,), npy(np.array(["a", "b"]))),
    "another order of bytes": of(">f4", (2, 3), npy(np.ones((2, 3), ">f4"))),
    "no bytes": of("float32", (), b""),
    "no header": of("float32", (2, 3), b"\x00" * len(GOOD)),
    "a header that nests deeply": of("float32", (2, 3), GOOD[:10] + b"(" * 118 + GOOD[128:]),
}


@pytest.mark.parametrize("kind", ODD_ARRAYS)
def test_an_array_that_is_not_what_it_claims_is_refused_by_its_name(kind: str) -> None:
    with pytest.raises(MessageError, match=r"^layer\.weight "):
        read_arrays(ArrayRecord({"layer.weight": ODD_ARRAYS[kind]}))


def test_a_pickle_in_a_message_is_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    bomb = np.array([Bomb(mark)], object)
    for array in (
        of("object", (1,), npy(bomb)),
        of("float32", (1,), npy(bomb)),
        of("uint8", (1,), npy(bomb)[:128] + b"\x00"),
        of("float32", (2, 3), pickle.dumps(Bomb(mark)), "pickle"),
        of("float32", (2, 3), pickle.dumps(Bomb(mark))),
    ):
        with pytest.raises(MessageError):
            read_arrays(ArrayRecord({"w": array}))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))  # noqa: S301
    assert mark.exists(), "the bomb of this test is none"


@pytest.mark.parametrize("numpy_header", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_headers_of_other_versions_of_numpy_are_read(
    numpy_header: tuple[int, int], order: Any, tmp_path: Path
) -> None:
    value = np.asarray(np.arange(6, dtype=np.float32).reshape(2, 3), order=order)
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, value, version=numpy_header)
    data = (tmp_path / "a.npy").read_bytes()
    if numpy_header == (1, 0):  # without the room that newer ones leave
        length = int.from_bytes(data[8:10], "little")
        header = data[10 : 10 + length].rstrip() + b" " * 5 + b"\n"
        data = data[:8] + len(header).to_bytes(2, "little") + header + data[10 + length :]
    (back,) = read_arrays(ArrayRecord({"w": of("float32", (2, 3), data)})).values()
    assert torch.equal(back, torch.from_numpy(value.copy()))


def test_a_transposed_tensor_comes_back_as_it_was() -> None:
    value = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(read_arrays(to_record({"w": value}))["w"], value)


# --- what a client is told ----------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"server-round": 1.5},
        {"server-round": -1},
        {"server-round": True},
        {"server-round": [1]},
        {"server-round": 1, "proximal-mu": "x"},
        {"server-round": 1, "proximal-mu": float("nan")},
        {"server-round": 1, "learning-rate": -0.1},
        {"server-round": 1, "learning-rate": float("inf")},
        {"server-round": 1, "client-momentum": b"0.5"},
    ],
)
def test_an_instruction_without_sense_is_refused_by_its_key(config: dict[str, Any]) -> None:
    content = RecordDict({"arrays": to_record(WEIGHTS), "config": ConfigRecord(config)})
    key = list(config)[1] if len(config) == 2 else "server-round"
    with pytest.raises(MessageError, match=key):
        content_of(Message(content, dst_node_id=1, message_type=MessageType.TRAIN))


def test_a_message_without_arrays_or_with_two_records_of_them_is_refused() -> None:
    config = ConfigRecord({"server-round": 1})
    for records in ({}, {"a": to_record(WEIGHTS), "b": to_record(WEIGHTS)}):
        content = RecordDict({**records, "config": config})
        with pytest.raises(MessageError, match="array records"):
            content_of(Message(content, dst_node_id=1, message_type=MessageType.TRAIN))


# --- replies of clients -------------------------------------------------------------------

NAN = torch.tensor([1.0, float("nan"), 1.0])
# what a client answers -> what is said of it; a callable makes all of its replies
BAD_UPDATES: dict[str, tuple[dict[str, Any] | Callable[[Message], Iterable[Message]], str]] = {
    "float64 for float32": ({"b": torch.ones(3).double()}, "b is of type float64"),
    "float16 for float32": ({"b": torch.ones(3).half()}, "b is of type float16"),
    "whole numbers for weights": ({"b": torch.ones(3, dtype=torch.int64)}, "b is of type int64"),
    "real numbers for a counter": ({"n": torch.tensor(1.5)}, "n is of type float32"),
    "an array left out": ({"b": None}, "b is missing"),
    "an array too many": ({"extra": torch.ones(1)}, "extra is not among the 3 arrays"),
    "a shape that would broadcast": ({"b": torch.ones(1)}, r"b has shape \(1,\)"),
    "a scalar that would broadcast": ({"w": torch.tensor(1.0)}, r"w has shape \(\)"),
    "a transposed shape": ({"w": torch.ones(3, 2)}, r"w has shape \(3, 2\)"),
    "a claim of terabytes": (
        {"w": of("float32", (2**20, 2**20), GOOD)},
        r"w has shape \(1048576, 1048576\)",
    ),
    "fewer bytes than claimed": ({"w": of("float32", (2, 3), GOOD[:-4])}, "w is no .npy file"),
    "objects": ({"w": of("float32", (2, 3), npy(np.full((2, 3), None)))}, "w .*object"),
    "NaN": ({"b": NAN}, "b holds NaN"),
    "infinity": ({"b": torch.full((3,), torch.inf)}, "b holds NaN or infinite"),
    "fewer than no examples": ({"num_examples": -1}, "num-examples=-1"),
    "half an example": ({"num_examples": 0.5}, "num-examples=0.5"),
    "NaN examples": ({"num_examples": float("nan")}, "num-examples=nan"),
    "a truth for a number": ({"num_examples": True}, "num-examples=True"),
    "a list for a number": ({"num_examples": [1, 2]}, "num-examples=\\[1, 2\\]"),
    "all the weight there is": ({"num_examples": 2**62}, "num-examples=4611686018427387904"),
    "no number of examples": ({"num_examples": None}, "num-examples=None"),
    "other metrics": ({"train_loss": None}, "metrics are other ones"),
    "a list of metrics": ({"train_loss": [1.0, 2.0]}, "metrics are other ones"),
    "two replies": (lambda m: [reply(m), reply(m, b=torch.ones(3) * 99)], "answered before"),
    "no reply": (lambda _: [], "did not answer"),
    "an error": (lambda m: [failed(m)], "disk on fire"),
    "someone else's name": (
        lambda m: [_from(m, 77)],
        "client 77: update rejected: it was not asked",
    ),
    "no records": (
        lambda m: [Message(RecordDict(), reply_to=m)],
        "0 metric records|0 array records",
    ),
}
BAD = 3  # of the clients 0 to 4


def _from(message: Message, client: int) -> Message:
    answer = reply(message)
    answer.metadata.__dict__["_src_node_id"] = client
    return answer


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "ours": lambda: FedAvg(FACTS, **ALL),
    "Flower's": lambda: ParametersOnly(FlowerFedAvg(**ALL), FACTS),
    "a median": lambda: FedMedian(FACTS, **ALL),
}


def answers(bad: object) -> Callable[[Message], Iterable[Message]]:
    def answer(message: Message) -> Iterable[Message]:
        if message.metadata.dst_node_id != BAD:
            return [reply(message)]
        return bad(message) if callable(bad) else [reply(message, **bad)]  # type: ignore[arg-type]

    return answer


@pytest.mark.parametrize("kind", BAD_UPDATES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_bad_reply_is_a_named_failure_and_the_others_count(
    kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, said = BAD_UPDATES[kind]
    grid = CheckedGrid(FakeGrid(5, answers(bad)), quorum=0.8)
    strategy = STRATEGIES[name]()
    with caplog.at_level(logging.WARNING):
        messages = strategy.configure_train(1, to_record(WEIGHTS), ConfigRecord(), grid)
        arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert arrays is not None
    good = [0.0, 1.0, 2.0, 4.0]
    if kind == "two replies":  # the first one counts
        good.append(3.0)
    wanted = np.median(good) if name == "a median" else np.mean(good)
    assert read_arrays(arrays)["w"].flatten().tolist() == pytest.approx([wanted] * 6)
    assert read_arrays(arrays)["b"].tolist() == pytest.approx([wanted] * 3)
    said_of = [line for line in caplog.messages if line.startswith(("client 3: ", "client 77: "))]
    assert re.search(said, " ".join(said_of))


# Only who asked can know of the others.
@pytest.mark.parametrize("kind", sorted(BAD_UPDATES.keys() - {"no reply", "someone else's name"}))
def test_our_strategies_do_not_rely_on_the_grid_for_what_touches_the_model(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, _ = BAD_UPDATES[kind]
    grid, strategy = FakeGrid(5, answers(bad)), FedAvg(FACTS, **ALL)
    messages = strategy.configure_train(1, to_record(WEIGHTS), ConfigRecord(), grid)
    with caplog.at_level(logging.WARNING):
        arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert arrays is not None
    wanted = [2.0] * 3 if kind == "two replies" else [1.75] * 3
    assert read_arrays(arrays)["b"].tolist() == wanted
    assert "client 3: " in caplog.text


def test_too_few_good_replies_end_the_round_with_the_first_of_the_bad() -> None:
    grid = CheckedGrid(FakeGrid(5, answers({"b": NAN})), quorum=0.9)
    messages = FedAvg(FACTS, **ALL).configure_train(1, to_record(WEIGHTS), ConfigRecord(), grid)
    with pytest.raises(QuorumError, match=r"4 of 5 .*0\.9 asks for 5.*client 3 .*b holds NaN"):
        grid.send_and_receive(messages)


def test_a_client_cannot_weigh_more_than_one_may() -> None:
    grid = CheckedGrid(FakeGrid(2, lambda m: [reply(m, num_examples=11)]), 0.5, most_weight=10)
    with pytest.raises(QuorumError, match="num-examples=11 is more than 10"):
        grid.send_and_receive([instruction(0), instruction(1)])


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), "0.5", None])
def test_a_loss_by_which_clients_weigh_is_a_finite_number(
    loss: object, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(message: Message) -> list[Message]:
        told = 0.5 if message.metadata.dst_node_id != BAD else loss
        made = reply(message)
        (metrics,) = made.content.metric_records.values()
        metrics.__dict__["_data"]["start-loss"] = told
        return [made]

    strategy = QFedAvg(FACTS, q=0.0, client_learning_rate=1.0, **ALL)
    grid = FakeGrid(5, answer)
    messages = strategy.configure_train(1, to_record(WEIGHTS), ConfigRecord(), grid)
    with caplog.at_level(logging.WARNING):
        arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert arrays is not None
    assert read_arrays(arrays)["b"].tolist() == pytest.approx([1.75] * 3)
    assert "client 3: update rejected: start-loss" in caplog.text


def test_replies_that_are_pulled_are_vetted_too() -> None:
    grid = CheckedGrid(FakeGrid(5, answers({"b": NAN})))
    ids = list(grid.push_messages([instruction(client) for client in range(5)]))
    replies = list(grid.pull_messages(ids))
    assert sorted(r.metadata.src_node_id for r in replies if r.has_content()) == [0, 1, 2, 4]
    assert [failure.client for failure in grid.failures] == [BAD]


@pytest.mark.parametrize("sums", [[1.0], "short", None])
def test_an_evaluation_that_cannot_be_added_is_left_out(sums: object) -> None:
    metrics = small_task(2).metrics.from_vector(np.array([4, *(3, 1, 0, 0), 2.0, 4]))

    def answer(message: Message) -> list[Message]:
        made = evaluate_reply(metrics, message)
        if message.metadata.dst_node_id == BAD:
            (record,) = made.content.metric_records.values()
            record.__dict__["_data"]["sums"] = sums
        return [made]

    grid = CheckedGrid(FakeGrid(5, answer), quorum=0.8)
    asked = [instruction(client, MessageType.EVALUATE) for client in range(5)]
    good = [r.content for r in grid.send_and_receive(asked) if r.has_content()]
    assert len(good) == 4
    (vector,) = summed_evaluations(good, "num-examples").values()
    assert small_task(2).metrics.from_vector(np.asarray(vector)).count == 16
    assert [failure.client for failure in grid.failures] == [BAD]


def test_a_reply_weighs_a_whole_number_or_is_no_update() -> None:
    with pytest.raises(MessageError, match="num-examples"):
        stack_of(reply(instruction(1), num_examples=1.0))
    assert stack_of(reply(instruction(1))).weights == (10,)


def test_messages_of_other_kinds_pass_unchanged() -> None:
    def answer(message: Message) -> list[Message]:
        return [Message(RecordDict({"m": MetricRecord({"x": 1})}), reply_to=message)]

    grid = CheckedGrid(FakeGrid(1, answer))
    (made,) = grid.send_and_receive([stamp(instruction(0, MessageType.QUERY))])
    assert made.content["m"]["x"] == 1  # type: ignore[index]
