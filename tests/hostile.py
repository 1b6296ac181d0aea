"""Replies of clients that do not mean well, or are broken, beside those of good ones."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
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
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun

from federated.flower.messages import become_server, error_reply, stamp, to_record

WEIGHTS = {"w": torch.zeros(2, 3), "b": torch.zeros(3), "n": torch.tensor(0)}
"""A model of two parameters and a counter."""


def npy(value: np.ndarray[Any, Any]) -> bytes:
    """Return what numpy writes, objects pickled too."""
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


def instruction(client: int, kind: str = MessageType.TRAIN) -> Message:
    """Return a strategy's message to a client."""
    become_server()
    content = RecordDict(
        {"arrays": to_record(WEIGHTS), "config": ConfigRecord({"server-round": 1})}
    )
    return stamp(Message(content, dst_node_id=client, message_type=kind))


def reply(to: Message, **changes: object) -> Message:
    """Return a good reply, all of whose numbers are the client's, with some `changes`.

    Of an array by its name, of a metric by that with `_` for `-`; None takes it away.
    """
    value = float(to.metadata.dst_node_id)
    arrays: dict[str, Array] = dict(
        to_record({name: torch.full_like(like, value) for name, like in WEIGHTS.items()})
    )
    metrics: dict[str, Any] = {"num-examples": 10, "train_loss": 0.5}
    for name, changed in changes.items():
        of_array = name in WEIGHTS or name == "extra"
        target: dict[str, Any] = arrays if of_array else metrics
        key = name if of_array or name in metrics else name.replace("_", "-")
        if changed is None:
            del target[key]
        elif isinstance(changed, torch.Tensor):
            target[key] = to_record({key: changed})[key]
        else:
            target[key] = changed
    record = MetricRecord()
    record.__dict__["_data"].update(metrics)  # as it may come from elsewhere: unchecked
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": record}), reply_to=to)


class FakeGrid(Grid):
    """Flower's grid, as far as a strategy sees it; `answer` makes the replies to a message."""

    def __init__(self, clients: int, answer: Callable[[Message], Iterable[Message]]) -> None:
        become_server()
        self._clients, self._answer = clients, answer
        self._waiting: dict[str, list[Message]] = {}

    def get_node_ids(self) -> list[int]:
        return list(range(self._clients))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        return [answer for message in messages for answer in self._answer(stamp(message))]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(stamp(message).metadata.message_id)
            self._waiting[ids[-1]] = list(self._answer(message))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [answer for key in message_ids for answer in self._waiting.pop(key, [])]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: FlowerRun) -> None: ...

    @property
    def run(self) -> FlowerRun:
        raise RuntimeError


def failed(to: Message) -> Message:
    """Return a client's own word that it failed."""
    return error_reply("disk on fire", to)
