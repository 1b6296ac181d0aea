"""Which replies of clients may touch the model: the last look at what others have sent.

A reply is taken only if it is the client's first, has the arrays that were asked for and no
others, of their types and shapes, all finite, and weighs a whole number of examples. Anything
else is a failure of that client, with its reason, and the others' replies still count.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import Message

from heliotrope.errors import MessageError

from ..aggregation.exact import MOST_WEIGHT
from ..updates import Failure, Stack, Weights
from .codec import forms_of
from .messages import START_LOSS, stack_of, weight_of

__all__ = ["updates_of", "vetted_evaluations", "vetted_updates"]

_log = logging.getLogger(__name__)


def updates_of(replies: Iterable[Message], start: Weights) -> list[tuple[Message, Stack]]:
    """Return the replies that are fit to be aggregated, with their updates; others are logged."""
    good, failures = vetted_updates(list(replies), lambda _: start)
    for failure in failures:
        _log.warning("client %d: %s", failure.client, failure.reason)
    return good


def vetted_updates(
    replies: Sequence[Message],
    start_of: Callable[[int], Weights],
    most_weight: int | None = None,
) -> tuple[list[tuple[Message, Stack]], list[Failure]]:
    """Return replies whose updates may be aggregated, and the others as failures.

    Parameters
    ----------
    start_of
        What a client was sent: the arrays that come back have the same names, types and shapes.
    most_weight
        Of one client; None for as much as all together can weigh in an exact sum.
    """
    most = MOST_WEIGHT // max(1, len(replies)) if most_weight is None else most_weight
    good: list[tuple[Message, Stack]] = []
    failures: list[Failure] = []
    for message in _first_of_each(replies, failures):
        client = message.metadata.src_node_id
        start = start_of(client)
        try:
            stack = stack_of(message, forms_of(start), most)
            _check_start_loss(message)
        except MessageError as error:
            failures.append(Failure(client, f"update rejected: {error}"))
            continue
        rejected = stack.rejections(start)
        failures += rejected.values()
        if not rejected:
            good.append((message, stack))
    alike = {id(message) for message in _alike([message for message, _ in good], failures)}
    return [(message, stack) for message, stack in good if id(message) in alike], failures


def vetted_evaluations(replies: Sequence[Message]) -> tuple[list[Message], list[Failure]]:
    """Return replies whose metrics may be added up, and the others as failures."""
    good: list[Message] = []
    failures: list[Failure] = []
    for message in _first_of_each(replies, failures):
        try:
            weight_of(message, MOST_WEIGHT // len(replies))
        except MessageError as error:
            reason = f"evaluation rejected: {error}"
            failures.append(Failure(message.metadata.src_node_id, reason))
            continue
        good.append(message)
    return _alike(good, failures), failures


def _first_of_each(replies: Iterable[Message], failures: list[Failure]) -> Iterator[Message]:
    """Yield the first reply of each client that says no error."""
    seen: set[int] = set()
    for message in replies:
        client = message.metadata.src_node_id
        if message.has_error():
            failures.append(Failure(client, message.error.reason or "it gave no reason"))
        elif client in seen:
            failures.append(Failure(client, "update rejected: the client has answered before"))
        else:
            seen.add(client)
            yield message


def _check_start_loss(message: Message) -> None:
    """Raise `MessageError` if a loss is told by which a strategy weighs, and it is no number."""
    (metrics,) = message.content.metric_records.values()
    loss = metrics.get(START_LOSS, 0.0)
    if not isinstance(loss, float) or not math.isfinite(loss):
        raise MessageError(f"{START_LOSS}={loss!r} is no finite number")


def _alike(messages: list[Message], failures: list[Failure]) -> list[Message]:
    """Return the messages whose metrics have the names and sizes that most have.

    What adds them up would raise, and the round of all would fail for one client.
    """
    shapes = [_shape_of(message) for message in messages]
    if len(set(shapes)) <= 1:
        return messages
    usual, _ = Counter(shapes).most_common(1)[0]
    for message, shape in zip(messages, shapes, strict=True):
        if shape != usual:
            reason = "rejected: its records or metrics are other ones than those of most clients"
            failures.append(Failure(message.metadata.src_node_id, reason))
    return [m for m, shape in zip(messages, shapes, strict=True) if shape == usual]


def _shape_of(message: Message) -> tuple[frozenset[str], frozenset[tuple[str, int]]]:
    """Return the names of the records, and of each metric with its length, -1 if it is no list."""
    (metrics,) = message.content.metric_records.values()
    sizes = ((k, len(v) if isinstance(v, list) else -1) for k, v in metrics.items())
    return frozenset(message.content), frozenset(sizes)
