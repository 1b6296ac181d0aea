"""q-FedAvg: fairer to clients with a high loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from ..aggregation import moved
from ..flower.messages import LEARNING_RATE, START_LOSS, read_arrays, to_record
from ..updates import Stack, Weights
from .facts import ModelFacts
from .mean import MeanStrategy

__all__ = ["QFedAvg"]

_LEAST_LOSS = 1e-10  # a loss of 0 to the power of q - 1 has no value


class QFedAvg(MeanStrategy):
    """Algorithm 2 of Li et al. 2020, "Fair Resource Allocation in Federated Learning".

    With L = 1 / the clients' learning rate, and F_k the loss of client k at the global weights w:
    Delta_k = F_k^q L (w - w_k), h_k = q F_k^(q-1) ||L (w - w_k)||^2 + L F_k^q, and
    w <- w - sum Delta_k / sum h_k. Clients count alike, whatever their examples; buffers are
    their mean by their weights.
    """

    def __init__(
        self, facts: ModelFacts, q: float, client_learning_rate: float, **settings: Any
    ) -> None:
        super().__init__(facts, **settings)
        self._q, self._rate = q, client_learning_rate
        self._round_rate = client_learning_rate

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config[START_LOSS] = True
        rate = config.get(LEARNING_RATE, self._rate)
        assert isinstance(rate, float)
        self._round_rate = rate
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_updates(
        self, server_round: int, updates: Sequence[tuple[Message, Stack]], start: Weights
    ) -> tuple[ArrayRecord, MetricRecord]:
        updates = sorted(updates, key=lambda update: update[1].clients)
        mean, metrics = super().aggregate_updates(server_round, updates, start)
        names = [name for name in start if name in self._facts.parameters]
        sums = {name: torch.zeros_like(start[name], dtype=torch.float64) for name in names}
        divisor, smoothness = 0.0, 1.0 / self._round_rate
        losses = [_start_loss(message) for message, _ in updates]
        largest = max(losses)  # all losses are divided by it: their powers stay within range
        for (_, stack), loss in zip(updates, losses, strict=True):
            own = stack.arrays
            gradients = {n: smoothness * (start[n].double() - own[n][0].double()) for n in names}
            square = sum(float(gradient.square().sum()) for gradient in gradients.values())
            power = (loss / largest) ** self._q
            divisor += power * (self._q * square / loss + smoothness)
            for name in names:
                sums[name] += power * gradients[name]
        whole = read_arrays(mean)
        whole |= {name: moved(start[name], -sums[name] / divisor) for name in names}
        return to_record(whole), metrics


def _start_loss(message: Message) -> float:
    """Return the loss at the global weights that a reply tells."""
    (numbers,) = message.content.metric_records.values()
    loss = numbers[START_LOSS]
    assert isinstance(loss, float)
    return max(loss, _LEAST_LOSS)
