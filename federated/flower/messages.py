"""Between our tensors and Flower's records. The only file that touches Flower's non-public names.

Checked against flwr 1.41 and 1.42; `tests/unit/test_messages.py` fails if one of them moves.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.errors import MessageError
from heliotrope.metrics import Metrics

from ..aggregation.exact import MOST_WEIGHT
from ..algorithms import (
    ClientAlgorithm,
    ClientMomentum,
    ControlVariates,
    FedProx,
    client_momentum,
    proximal,
)
from ..algorithms.control_variates import STATE
from ..updates import Instruction, Stack, Update
from .codec import Form, read_arrays, to_record

__all__ = [
    "CLIENT_MOMENTUM",
    "CLIP",
    "EQUAL_WEIGHTS",
    "LEARNING_RATE",
    "START_LOSS",
    "TRAINING",
    "become_server",
    "content_of",
    "content_to_train",
    "error_reply",
    "evaluate_reply",
    "only",
    "read_arrays",
    "stack_of",
    "stamp",
    "summed_evaluations",
    "sums_of",
    "to_record",
    "train_reply",
    "training_record",
    "weight_of",
    "with_training_record",
]

_Record = TypeVar("_Record")

CLIENT_MOMENTUM = "client-momentum"  # of each client's updates, in the config if it is not 0
CLIP = "clip"  # the norm that updates may have, in the config of a round that has its own
LEARNING_RATE = "learning-rate"  # of the clients, in the config of a round that has its own
TRAINING = "training"  # in a deployed client's reply, the record of `training_record`
EQUAL_WEIGHTS = "equal-weights"  # asked for in the config: each client weighs 1 in the mean
START_LOSS = "start-loss"  # asked for in the config; in the metrics, the loss at global weights

_SERVER_NODE = 1
_CLIENT_ERROR = 100  # any code says "error"; the reason carries what happened
_message_ids = itertools.count(1)


def become_server() -> None:
    """Give this process the identity that Flower's messages are stamped with, unless it has one.

    Flower gives one to the server of a deployment. Also sends Flower's log lines to the run's log
    only: it prints each round to the console.
    """
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:  # nobody has set one
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


def content_of(message: Message) -> tuple[dict[str, Tensor], Instruction]:
    """Return the global weights and the instruction that a strategy's message carries.

    Among the arrays may be the server's control variates, by the names of the weights after
    `control_variates.STATE`. Raises `MessageError` if there is no such thing in it.
    """
    record = only(message.content.array_records, "array")
    config = only(message.content.config_records, "config")
    arrays = read_arrays(record)
    controls = {n.removeprefix(STATE): arrays.pop(n) for n in list(arrays) if n.startswith(STATE)}
    return arrays, _instruction(config, (ControlVariates(controls),) if controls else ())


def content_to_train(weights: Mapping[str, Tensor], instruction: Instruction) -> RecordDict:
    """Return the content of a message from which `content_of` reads the same.

    Raises `ValueError` for an algorithm that no message tells, and for what is never sent: states,
    noise and masks.
    """
    if (instruction.states, instruction.noise, instruction.masking) != (None, None, None):
        raise ValueError("states, noise and masks of clients are not sent")
    config = ConfigRecord({"server-round": instruction.server_round})
    arrays = dict(weights)
    for algorithm in instruction.algorithms:
        match algorithm:
            case FedProx():
                config["proximal-mu"] = algorithm.mu
            case ClientMomentum():
                config[CLIENT_MOMENTUM] = algorithm.beta
            case ControlVariates():
                arrays |= {f"{STATE}{name}": value for name, value in algorithm.server.items()}
            case _:
                raise ValueError(f"no message tells {type(algorithm).__name__}")
    numbers = {LEARNING_RATE: instruction.lr, CLIP: instruction.clip}
    config.update({key: value for key, value in numbers.items() if value is not None})
    asked = {START_LOSS: instruction.start_loss, EQUAL_WEIGHTS: instruction.equal_weights}
    config.update({key: True for key, value in asked.items() if value})
    return RecordDict({"arrays": to_record(arrays), "config": config})


def only(records: Mapping[str, _Record], kind: str) -> _Record:
    """Return the one record of its kind; `MessageError` if there are none, or several."""
    if len(records) != 1:
        raise MessageError(f"there are {len(records)} {kind} records instead of one")
    return next(iter(records.values()))


def _instruction(config: ConfigRecord, more: tuple[ClientAlgorithm, ...]) -> Instruction:
    server_round = config.get("server-round")
    if type(server_round) is not int or server_round < 0:
        raise MessageError(f"server-round={server_round!r} is no number of a round")
    return Instruction(
        server_round=server_round,
        algorithms=(
            *proximal(_number(config, "proximal-mu") or 0.0),
            *more,
            *client_momentum(_number(config, CLIENT_MOMENTUM) or 0.0),
        ),
        lr=_number(config, LEARNING_RATE),
        start_loss=bool(config.get(START_LOSS, False)),
        equal_weights=bool(config.get(EQUAL_WEIGHTS, False)),
        clip=_number(config, CLIP),
    )


def _number(config: ConfigRecord, key: str) -> float | None:
    """Return a number of at least 0 that a strategy tells clients; None if it tells none."""
    if key not in config:
        return None
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MessageError(f"{key}={value!r} is no number")
    if not 0 <= value < math.inf:
        raise MessageError(f"{key}={value!r} is not a number of at least 0")
    return float(value)


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


def training_record(update: Update) -> ConfigRecord:
    """Return what a deployed client tells of its training beside its update: for the report."""
    return ConfigRecord(
        {
            "loss-sum": update.loss_sum,
            "seen": update.seen,
            "weight-seen": update.weight_seen,
            "steps": update.steps,
        }
    )


def with_training_record(stack: Stack, record: ConfigRecord) -> Stack:
    """Return a stack of one with what its client has told in `training_record`.

    Raises `MessageError` if those are no numbers.
    """
    seen, weight_seen, steps = (record.get(key) for key in ("seen", "weight-seen", "steps"))
    counts = [each for each in (seen, weight_seen, steps) if type(each) is int and each >= 0]
    loss = record.get("loss-sum")
    if len(counts) < 3 or not isinstance(loss, float) or not math.isfinite(loss):
        raise MessageError(f"the record {TRAINING} holds other things than numbers")
    return replace(
        stack,
        loss_sums=(loss,),
        seen=(counts[0],),
        weights_seen=(counts[1],),
        steps=(counts[2],),
    )


def stack_of(
    reply: Message, expected: Mapping[str, Form] | None = None, most_weight: int = MOST_WEIGHT
) -> Stack:
    """Return the update that a reply carries, as a stack of one.

    Raises `MessageError` if its arrays are not as `expected`, or if it is weighed by anything else
    than a whole number up to `most_weight`. Whether they are finite is not looked at.
    """
    arrays = only(reply.content.array_records, "array")
    client, weight = reply.metadata.src_node_id, weight_of(reply, most_weight)
    return Stack(
        clients=(client,),
        arrays={name: value[None] for name, value in read_arrays(arrays, expected).items()},
        weights=(weight,),
        loss_sums=(0.0,),
        seen=(weight,),
        weights_seen=(weight,),
        steps=(0,),
    )


def weight_of(reply: Message, most_weight: int = MOST_WEIGHT) -> int:
    """Return what a reply says that it weighs; `MessageError` if it is no number of examples."""
    weight = only(reply.content.metric_records, "metric").get("num-examples")
    if type(weight) is not int or weight < 0:
        raise MessageError(f"num-examples={weight!r} is no number of examples")
    if weight > most_weight:
        raise MessageError(f"num-examples={weight} is more than {most_weight}, the most there are")
    return weight


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
