"""A client's half of secure aggregation over Flower's messages: a mod of its ClientApp.

    app = ClientApp(mods=[secure_aggregation_mod])

It answers the stages in which keys and shares are exchanged by itself, and replaces the update in
the reply of the app's own `train` by a masked one. Between messages the secrets are in the node's
own context, where Flower keeps it; nothing is pickled.
"""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from heliotrope.errors import MessageError

from ..aggregation.masked import Layout, MaskedReduction
from ..secure_aggregation.client import Client
from ..secure_aggregation.masking import Masking
from ..secure_aggregation.messages import (
    ForwardedShares,
    RefusedMessageError,
    Roster,
    Setup,
    Survivors,
    Vector,
)
from ..secure_aggregation.quantization import Quantizer
from ..updates import Stack
from .messages import TRAINING, content_of, error_reply, only, stack_of, with_training_record
from .secure_codec import SECURE, decoded, encoded, number_of, record_of

__all__ = ["NUMBER", "QUANTIZER", "TOLD", "secure_aggregation_mod"]

QUANTIZER, TOLD = f"{SECURE}.quantizer", f"{SECURE}.told"
"""The records of a round's first message beside its `Setup`: how numbers are made whole, and the
names of the metrics that are masked beside weights, with the client's `NUMBER` in the round."""
NUMBER = "client"
_STATE = f"{SECURE}.client"


def secure_aggregation_mod(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Answer a message of the protocol; evaluations and queries are the app's own.

    Training that would not be masked is refused: a server cannot ask for less.
    """
    if SECURE not in message.content.config_records:
        if message.metadata.message_type.partition(".")[0] == MessageType.TRAIN:
            return error_reply("it trains under secure aggregation only", message)
        return call_next(message, context)
    try:
        answer = _answer(message, context, call_next)
    except (RefusedMessageError, MessageError) as error:
        context.state.config_records.pop(_STATE, None)
        return error_reply(str(error), message)
    return answer


def _answer(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    record = message.content.config_records[SECURE]
    if record.get("kind") == Setup.__name__:
        setup = decoded(Setup, record)
        for name in (SECURE, QUANTIZER, TOLD):
            if name not in message.content.config_records:
                raise RefusedMessageError(f"a round without {name}")
            context.state[name] = message.content.config_records[name]
        client = Client(number_of(context.state.config_records[TOLD], NUMBER), setup)
        return _reply(client.advertise(), client, message, context)
    if _STATE not in context.state.config_records:
        raise RefusedMessageError("a round that was not begun, or has ended here")
    setup = decoded(Setup, context.state.config_records[SECURE])
    client = Client.restored(setup, dict(context.state.config_records[_STATE]))
    if record.get("kind") == ForwardedShares.__name__:
        return _masked(client, setup, message, context, call_next)
    if record.get("kind") == Roster.__name__:
        return _reply(client.share_keys(decoded(Roster, record)), client, message, context)
    revealed = client.reveal(decoded(Survivors, record))
    context.state.config_records.pop(_STATE)
    return Message(RecordDict({SECURE: encoded(revealed)}), reply_to=message)


def _masked(
    client: Client, setup: Setup, message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Stage 3: open the shares, train, and mask what was trained; zeros, if there is no model."""
    client.receive_shares(decoded(ForwardedShares, message.content.config_records.pop(SECURE)))
    if not message.content.array_records:
        return _reply(client.masked_input(Vector.zeros(setup)), client, message, context)
    weights, instruction = content_of(message)
    starts = instruction.starts(weights)
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    quantizer = decoded(Quantizer, context.state.config_records[QUANTIZER])
    names = context.state.config_records[TOLD].get("names", [])
    layout = Layout(starts, tuple(str(name) for name in names))  # type: ignore[union-attr]
    if (layout.size, layout.numbers, quantizer.bits) != (setup.size, setup.numbers, setup.bits):
        raise RefusedMessageError(f"client {client.number} refuses: weights of another size")
    stack = replace(_trained(reply, layout), clients=(client.number,))
    reduction = MaskedReduction(layout, Masking(quantizer, {client.number: client.masks()}))
    failures = reduction.add(stack)
    if failures:
        return error_reply(failures[0].reason, message)
    (masked,) = reduction.inputs
    return _reply(masked, client, message, context)


def _trained(reply: Message, layout: Layout) -> Stack:
    """Return what the app has trained, with the counts that it tells, if it is one of ours."""
    metrics = only(reply.content.metric_records, "metric")
    told = {name: (_number(metrics, name),) for name in layout.told}
    stack = replace(stack_of(reply), numbers=told)
    record = reply.content.config_records.get(TRAINING)
    return stack if record is None else with_training_record(stack, record)


def _number(metrics: MetricRecord, name: str) -> float:
    value = metrics.get(name)
    if not isinstance(value, int | float):
        raise RefusedMessageError(
            f"the server asks for the metric {name}, and this ClientApp tells "
            f"{', '.join(metrics) or 'none'}. Name those of all clients as SecureGrid(told=[...])."
        )
    return float(value)


def _reply(answer: object, client: Client, message: Message, context: Context) -> Message:
    context.state[_STATE] = record_of(client.saved())
    return Message(RecordDict({SECURE: encoded(answer)}), reply_to=message)
