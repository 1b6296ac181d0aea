"""Flower's names that are not public, and what crosses between our tensors and its records."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from federated.algorithms import FedProx
from federated.flower.messages import (
    become_server,
    content_of,
    error_reply,
    evaluate_reply,
    read_arrays,
    stamp,
    summed_evaluations,
    to_record,
    train_reply,
)
from federated.updates import Update
from tests.support import small_task


@pytest.fixture
def instruction() -> Message:
    """A strategy's message to client 7 in round 3."""
    become_server()
    arrays = to_record({"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3.0)})
    config = ConfigRecord({"server-round": 3, "proximal-mu": 0.5})
    content = RecordDict({"arrays": arrays, "config": config})
    return stamp(Message(content, dst_node_id=7, message_type=MessageType.TRAIN))


def test_the_names_of_flower_that_are_not_public_still_mean_what_they_did(
    instruction: Message,
) -> None:
    assert TaskIdentity.node_id == instruction.metadata.src_node_id
    assert TaskIdentity.run_id == instruction.metadata.run_id
    assert instruction.metadata.message_id != ""
    reply = error_reply("disk on fire", instruction)
    assert reply.metadata.reply_to_message_id == instruction.metadata.message_id
    assert reply.metadata.src_node_id == 7


def test_every_message_gets_another_id(instruction: Message) -> None:
    first = instruction.metadata.message_id
    assert stamp(instruction).metadata.message_id != first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_arrays_come_back_with_values_dtypes_and_order(dtype: torch.dtype) -> None:
    arrays = {
        "z": torch.arange(6).view(2, 3).to(dtype),
        "a": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 4, dtype=dtype),
    }
    back = read_arrays(to_record(arrays))
    assert list(back) == list(arrays)
    for name, value in arrays.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], value)


def test_what_was_read_can_be_changed_without_changing_the_record() -> None:
    record = to_record({"w": torch.zeros(2)})
    read_arrays(record)["w"].add_(1)
    assert torch.equal(read_arrays(record)["w"], torch.zeros(2))


def test_an_instruction_holds_the_weights_the_round_and_the_proximal_term(
    instruction: Message,
) -> None:
    weights, order = content_of(instruction)
    assert torch.equal(weights["w"], torch.tensor([[1.0, 2.0]]))
    assert (order.server_round, order.algorithms) == (3, (FedProx(0.5),))


def test_a_train_reply_tells_its_weight_and_the_loss_per_unit_of_it(instruction: Message) -> None:
    update = Update(
        (7,),
        {"w": torch.ones(2)},
        weight=10,
        loss_sum=30.0,
        seen=5,
        weight_seen=20,
        steps=4,
    )
    content = train_reply(update, instruction).content
    (metrics,) = content.metric_records.values()
    assert metrics["num-examples"] == 10
    assert metrics["train_loss"] == 1.5
    assert isinstance(content["arrays"], ArrayRecord)


def test_evaluations_are_added_and_not_averaged(instruction: Message) -> None:
    of = small_task(3).metrics
    parts = [
        of.from_vector(np.array([4, *(3, 1, 0, 0, 0, 0, 0, 0, 0), 2.0, 4])),
        of.from_vector(np.array([6, *(0, 0, 0, 5, 1, 0, 0, 0, 0), 7.0, 6])),
    ]
    replies = [evaluate_reply(part, instruction).content for part in parts]
    (vector,) = summed_evaluations(replies, "num-examples").values()
    total = of.from_vector(np.asarray(vector))
    assert total.count == 10
    assert total.compute()["accuracy"] == 0.4
    assert total.compute()["loss"] == 0.9
