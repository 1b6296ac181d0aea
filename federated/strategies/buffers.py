"""Keeps buffers out of strategies that know only weights, such as Flower's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from ..aggregation import Reduction, mean_of
from ..flower.messages import read_arrays, to_record
from ..flower.vetting import updates_of
from .facts import ModelFacts

__all__ = ["ParametersOnly"]


class ParametersOnly(Strategy):
    """Runs `inner` on the parameters; buffers become the clients' weighted mean.

    A server optimizer would step BatchNorm's statistics and counters as if they were weights.
    Integer buffers are rounded to the nearest whole number.
    """

    def __init__(self, inner: Strategy, facts: ModelFacts) -> None:
        self.inner = inner
        self._facts = facts
        self._start = ArrayRecord()  # the global arrays of the round

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._start = arrays
        own = self._parameters(arrays)
        return self._whole(self.inner.configure_train(server_round, own, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._start = arrays
        own = self._parameters(arrays)
        return self._whole(self.inner.configure_evaluate(server_round, own, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        sent = read_arrays(self._start)
        updates = updates_of(replies, sent)
        for message, _ in updates:
            ((name, record),) = message.content.array_records.items()
            others = {key: value for key, value in message.content.items() if key != name}
            message.content = RecordDict({name: self._parameters(record), **others})
        messages, stacks = [message for message, _ in updates], [stack for _, stack in updates]
        arrays, metrics = self.inner.aggregate_train(server_round, messages)
        if arrays is None:
            return None, metrics
        start = {name: value for name, value in sent.items() if name in self._facts.buffers}
        most = max(self._facts.most_weight, sum(sum(stack.weights) for stack in stacks))
        reduction = Reduction(start, most)
        for stack in stacks:
            reduction.add(replace(stack, arrays={name: stack.arrays[name] for name in start}))
        whole = reduction.partial()
        assert whole is not None
        buffers = to_record(mean_of([whole], start).weights(start))
        return self._joined(arrays, buffers), metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        return self.inner.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        self.inner.summary()

    def _parameters(self, record: ArrayRecord) -> ArrayRecord:
        names = self._facts.parameters
        return ArrayRecord({name: array for name, array in record.items() if name in names})

    def _joined(self, parameters: ArrayRecord, buffers: ArrayRecord) -> ArrayRecord:
        """Return the global arrays with these values, in their order."""
        both = {**self._start, **buffers, **parameters}
        return ArrayRecord({name: both[name] for name in self._start})

    def _whole(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages whose arrays hold the buffers too; what they share, they still share."""
        whole: dict[int, tuple[RecordDict, RecordDict]] = {}  # the first keeps the id in use
        completed = list(messages)
        for message in completed:
            content = message.content
            if id(content) not in whole:
                ((name, record),) = content.array_records.items()
                others = {key: value for key, value in content.items() if key != name}
                arrays = self._joined(record, ArrayRecord())
                whole[id(content)] = content, RecordDict({name: arrays, **others})
            message.content = whole[id(content)][1]
        return completed
