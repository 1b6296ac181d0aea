"""Between our tensors and Flower's records. The only file that touches Flower's non-public names.

Checked against flwr 1.41 and 1.42; `tests/unit/test_messages.py` fails if one of them moves.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.metrics import Metrics

from ..algorithms import ClientAlgorithm, ControlVariates, client_momentum, proximal
from ..algorithms.control_variates import STATE
from ..updates import Instruction, Stack, Update

__all__ = [
    "CLIENT_MOMENTUM",
    "CLIP",
    "EQUAL_WEIGHTS",
    "LEARNING_RATE",
    "START_LOSS",
    "become_server",
    "content_of",
    "error_reply",
    "evaluate_reply",
    "read_arrays",
    "stack_of",
    "stamp",
    "summed_evaluations",
    "sums_of",
    "to_record",
    "train_reply",
]

CLIENT_MOMENTUM = "client-momentum"  # of each client's updates, in the config if it is not 0
CLIP = "clip"  # the norm that updates may have, in the config of a round that has its own
LEARNING_RATE = "learning-rate"  # of the clients, in the config of a round that has its own
EQUAL_WEIGHTS = "equal-weights"  # asked for in the config: each client weighs 1 in the mean
START_LOSS = "start-loss"  # asked for in the config; in the metrics, the loss at global weights

_SERVER_NODE = 1
_CLIENT_ERROR = 100  # any code says "error"; the reason carries what happened
_message_ids = itertools.count(1)


def become_server() -> None:
    """Give this process the identity that Flower's messages are stamped with.

    Also sends Flower's log lines to the run's log only: it prints each round to the console.
    """
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = 1
    TaskIdentity.node_id = _SERVER_NODE
    logger = logging.getLogger("flwr")
    logger.handlers.clear()
    logger.propagate = True


def stamp(message: Message) -> Message:
    """Give a message the id that only a SuperLink would otherwise give it."""
    message.metadata.__dict__["_message_id"] = str(next(_message_ids))
    return message


def to_record(arrays: Mapping[str, Tensor]) -> ArrayRecord:
    """Return tensors as Flower's serialised arrays, in order."""
    return ArrayRecord(
        {name: Array(value.detach().cpu().numpy()) for name, value in arrays.items()}
    )


def read_arrays(record: ArrayRecord) -> dict[str, Tensor]:
    """Return Flower's arrays as tensors of the same dtypes, each with its own memory."""
    return {name: torch.from_numpy(_decoded(array)) for name, array in record.items()}


def _decoded(array: Array) -> NDArray[Any]:
    """Return a copy of an array; its bytes are a .npy file, whose header takes long to parse."""
    count = math.prod(array.shape)
    values = np.dtype(array.dtype)
    header = len(array.data) - count * values.itemsize
    if b"'fortran_order': False" not in array.data[:header]:
        return np.array(array.numpy())
    flat = np.frombuffer(array.data, values, count, header)
    return flat.reshape(tuple(array.shape)).copy()


def content_of(message: Message) -> tuple[dict[str, Tensor], Instruction]:
    """Return the global weights and the instruction that a strategy's message carries.

    Among the arrays may be the server's control variates, by the names of the weights after
    `control_variates.STATE`.
    """
    (record,) = message.content.array_records.values()
    (config,) = message.content.config_records.values()
    arrays = read_arrays(record)
    controls = {n.removeprefix(STATE): arrays.pop(n) for n in list(arrays) if n.startswith(STATE)}
    return arrays, _instruction(config, (ControlVariates(controls),) if controls else ())


def _instruction(config: ConfigRecord, more: tuple[ClientAlgorithm, ...]) -> Instruction:
    mu, beta = config.get("proximal-mu", 0.0), config.get(CLIENT_MOMENTUM, 0.0)
    server_round, rate = config["server-round"], config.get(LEARNING_RATE)
    clip = config.get(CLIP)
    assert isinstance(mu, int | float)
    assert isinstance(beta, float)
    assert isinstance(server_round, int)
    assert rate is None or isinstance(rate, float)
    assert clip is None or isinstance(clip, float)
    return Instruction(
        server_round=server_round,
        algorithms=(*proximal(float(mu)), *more, *client_momentum(beta)),
        lr=rate,
        start_loss=bool(config.get(START_LOSS, False)),
        equal_weights=bool(config.get(EQUAL_WEIGHTS, False)),
        clip=clip,
    )


def train_reply(
    update: Update,
    reply_to: Message,
    start_loss: float | None = None,
    *,
    tells_loss: bool = True,
) -> Message:
    """Return an update, of one client or the mean of several, as a reply.

    `num-examples` is the weight in Flower's means: the sum of the examples' weights, such as their
    number. `train_loss` is the loss per unit of weight while training, `start-loss` that at the
    global weights, where it was asked for; beside them are the numbers that algorithms tell.
    The losses are left out unless it `tells_loss`: a strategy could make a model of them.
    """
    metrics = MetricRecord({"num-examples": update.weight, **update.numbers})
    if tells_loss:
        metrics["train_loss"] = update.loss_sum / max(1, update.weight_seen)
    if start_loss is not None:
        metrics[START_LOSS] = start_loss
    content = RecordDict({"arrays": to_record(update.arrays), "metrics": metrics})
    return Message(content, reply_to=reply_to)


def stack_of(reply: Message) -> Stack:
    """Return the update that a reply carries, as a stack of one.

    Raises `ValueError` if it is weighed by anything else than a whole number.
    """
    (arrays,) = reply.content.array_records.values()
    (metrics,) = reply.content.metric_records.values()
    client, weight = reply.metadata.src_node_id, metrics["num-examples"]
    if not isinstance(weight, int) or weight < 0:
        raise ValueError(f"client {client}: num-examples={weight} is no number of examples")
    return Stack(
        clients=(client,),
        arrays={name: value[None] for name, value in read_arrays(arrays).items()},
        weights=(weight,),
        loss_sums=(0.0,),
        seen=(weight,),
        weights_seen=(weight,),
        steps=(0,),
    )


def evaluate_reply(metrics: Metrics, reply_to: Message) -> Message:
    """Return a client's metrics as sums, so that the server can add them exactly."""
    sums = metrics.to_vector().tolist()
    record = MetricRecord({"num-examples": metrics.count, "sums": sums})
    return Message(RecordDict({"metrics": record}), reply_to=reply_to)


def summed_evaluations(replies: Sequence[RecordDict], _weight_key: str) -> MetricRecord:
    """Add the clients' sums; given to strategies in place of their mean of means."""
    vectors = [
        np.asarray(record["sums"]) for reply in replies for record in reply.metric_records.values()
    ]
    return MetricRecord({"sums": np.sum(vectors, axis=0).tolist()})


def sums_of(summed: MetricRecord) -> NDArray[np.float64]:
    """Return the sums that `summed_evaluations` gave, as a vector."""
    return np.asarray(summed["sums"], dtype=np.float64)


def error_reply(reason: str, reply_to: Message) -> Message:
    """Return a client's failure as a reply."""
    return Message(Error(code=_CLIENT_ERROR, reason=reason), reply_to=reply_to)
