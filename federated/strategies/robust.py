"""Strategies that bound what a few malicious clients can do. Every client counts alike.

Distances, medians and means are taken in float64 and rounded once. Distances are those of
parameters. Buffers (BatchNorm's statistics and counters) are combined coordinate by coordinate: by
the rule itself if that does so, otherwise by a median, since a client whose parameters are like
the others' may send any buffers. Whole numbers are rounded to the nearest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor

from heliotrope.errors import RunFailedError
from heliotrope.seeding import numpy_generator

from ..flower.messages import read_arrays, to_record
from ..flower.vetting import updates_of
from ..fractions import decimal, fraction_rounded_down
from ..updates import Update, Weights, is_finite
from .facts import ModelFacts

__all__ = ["Bucketing", "Bulyan", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum"]
__all__ += ["RobustStrategy", "trimmed_mean", "weighted_median"]


_log = logging.getLogger(__name__)

_EVEN = 1e-9  # how far a sum of shares may be from one half by rounding


@dataclass(frozen=True)
class Bucketing:
    """Means of few random clients, for a rule to combine (Karimireddy et al. 2022, Algorithm 1).

    Parameters
    ----------
    size
        Clients of a bucket; the last of a round may have fewer. With 1, nothing is done.
    run_seed
        Of the run: each round has another permutation.
    """

    size: int
    run_seed: int

    def count(self, clients: int) -> int:
        """Return the number of buckets of so many clients."""
        return -(-clients // self.size)

    def means(self, server_round: int, weights: Sequence[Weights]) -> Sequence[Weights]:
        """Return the mean of each bucket, float64 [*shape] each, of the weights of clients."""
        if self.size == 1:
            return weights
        generator = numpy_generator(self.run_seed, "buckets", server_round)
        order = generator.permutation(len(weights)).tolist()
        buckets = [order[at : at + self.size] for at in range(0, len(order), self.size)]
        return [
            {
                name: torch.stack([weights[client][name].double() for client in bucket]).mean(dim=0)
                for name in weights[0]
            }
            for bucket in buckets
        ]


class RobustStrategy(FlowerFedAvg):
    """Combines the clients' weights, all at once.

    `least` is the smallest number of clients, or of buckets of them, from which the rule gives what
    it promises. An update that is not fit, such as one that is not finite, is left out.
    """

    def __init__(self, facts: ModelFacts, **settings: Any) -> None:
        super().__init__(**settings)
        self._facts = facts
        self._start = ArrayRecord()  # the global weights of the round
        self.bucketing = Bucketing(1, 0)
        self.least = 1
        self.numbers: Mapping[str, float] = {}  # of the last round, to be told

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._start = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new model; raises `RunFailedError` if too few clients have replied."""
        updates = updates_of(replies, read_arrays(self._start))
        if not updates:
            return None, None
        updates.sort(key=lambda update: update[1].clients)
        weights = [{n: v[0] for n, v in stack.arrays.items()} for _, stack in updates]
        metrics = self.train_metrics_aggr_fn(
            [message.content for message, _ in updates], self.weighted_by_key
        )
        return self._aggregated(server_round, weights), metrics

    @property
    def takes_updates(self) -> bool:
        """Whether `aggregate_updates` gives what `aggregate_train` does: not if that is another."""
        return type(self).aggregate_train is RobustStrategy.aggregate_train

    def aggregate_updates(self, server_round: int, updates: Sequence[Update]) -> ArrayRecord | None:
        """Return what `aggregate_train` does for the same updates as replies, in half the time.

        They are of one client each, in any order, with the arrays that were asked for.
        """
        updates = sorted(updates, key=lambda update: update.clients)
        weights = [{n: v.cpu() for n, v in update.arrays.items()} for update in updates]
        good = []
        for update, each in zip(updates, weights, strict=True):
            if all(map(is_finite, each.values())):
                good.append(each)
            else:
                _log.warning("client %d: update is not finite", update.clients[0])
        return self._aggregated(server_round, good) if good else None

    def _aggregated(self, server_round: int, weights: Sequence[Weights]) -> ArrayRecord:
        count = self.bucketing.count(len(weights))
        if count < self.least:
            of = "" if self.bucketing.size == 1 else f" in buckets of {self.bucketing.size}"
            raise RunFailedError(
                f"round {server_round}: {type(self).__name__} needs the updates of {self.least} "
                f"clients to bound those of bad ones, and has {count}{of}. Raise "
                "federated.clients_per_round."
            )
        combined = self.combine(self.bucketing.means(server_round, weights))
        rounded = {}
        for name, like in weights[0].items():
            whole = combined[name]
            rounded[name] = (whole if like.is_floating_point() else whole.round()).to(like.dtype)
        return to_record(rounded)

    def combine(self, weights: Sequence[Weights]) -> Mapping[str, Tensor]:
        """Return the new weights, float64 [*shape] each, from those of clients or buckets."""
        chosen = self.chosen(weights)
        return {
            name: self.combined(torch.stack([weights[client][name].double() for client in chosen]))
            for name in weights[0]
        }

    def buffers(self, weights: Sequence[Weights], shares: Tensor) -> dict[str, Tensor]:
        """Return the medians of buffers, float64 [*shape] each; clients count by `shares`, [K]."""
        return {
            name: weighted_median(torch.stack([each[name].double() for each in weights]), shares)
            for name in self._facts.buffers
        }

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: no round needs anything of an earlier one."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back nothing."""

    def chosen(self, weights: Sequence[Weights]) -> list[int]:
        """Return the places of the clients that are combined: all, if not overridden."""
        return list(range(len(weights)))

    def combined(self, stack: Tensor) -> Tensor:
        """Return one tensor, [*shape], for those of the chosen clients, float64 [K, *shape]."""
        return stack.mean(dim=0)

    def _distances(self, weights: Sequence[Weights]) -> Tensor:
        """Return squared distances of clients' parameters, float64 [K, K]: sums of differences.

        No expansion by norms: for updates that are small beside the weights it cancels.
        """
        squares = torch.zeros(len(weights), len(weights), dtype=torch.float64)
        for name in sorted(self._facts.parameters):
            stack = torch.stack([each[name].reshape(-1) for each in weights]).double()
            for client in range(len(weights) - 1):
                ways = stack[client + 1 :] - stack[client]
                squares[client, client + 1 :] += ways.square_().sum(dim=1)
        return squares + squares.t()


class FedMedian(RobustStrategy):
    """The coordinate-wise median (Yin et al. 2018), of an even number the middle ones' mean."""

    def combined(self, stack: Tensor) -> Tensor:
        return trimmed_mean(stack, (len(stack) - 1) // 2)


class FedTrimmedAvg(RobustStrategy):
    """The coordinate-wise mean without the `beta` share at each end (Yin et al. 2018)."""

    def __init__(self, facts: ModelFacts, beta: float, **settings: Any) -> None:
        super().__init__(facts, **settings)
        self._beta = beta
        self.least = least_trimmed(beta)

    def combined(self, stack: Tensor) -> Tensor:
        return trimmed_mean(stack, fraction_rounded_down(self._beta, len(stack)))


class MultiKrum(RobustStrategy):
    """The mean of the clients with the best Krum scores (Blanchard et al. 2017)."""

    def __init__(
        self,
        facts: ModelFacts,
        num_malicious_nodes: int,
        num_nodes_to_select: int,
        **settings: Any,
    ) -> None:
        super().__init__(facts, **settings)
        self._bad, self._selected = num_malicious_nodes, num_nodes_to_select
        self.least = max(2 * self._bad + 3, self._selected + self._bad)

    def chosen(self, weights: Sequence[Weights]) -> list[int]:
        scores = krum_scores(self._distances(weights), self._bad)
        best = torch.argsort(scores, stable=True)[: self._selected]
        return sorted(best.tolist())

    def combine(self, weights: Sequence[Weights]) -> Mapping[str, Tensor]:
        alike = torch.full((len(weights),), 1 / len(weights), dtype=torch.float64)
        return {**super().combine(weights), **self.buffers(weights, alike)}


class Krum(MultiKrum):
    """The client that is closest to its n - f - 2 nearest others (Blanchard et al. 2017)."""

    def __init__(self, facts: ModelFacts, num_malicious_nodes: int, **settings: Any) -> None:
        super().__init__(facts, num_malicious_nodes, 1, **settings)


class Bulyan(RobustStrategy):
    """Selection by repeated Krum, then a mean around the median (El Mhamdi et al. 2018, section 4).

    Of n clients, theta = n - 2f are taken one by one, each the best of those left; of them, each
    coordinate takes the mean of the theta - 2f values closest to their median.
    """

    def __init__(self, facts: ModelFacts, num_malicious_nodes: int, **settings: Any) -> None:
        super().__init__(facts, **settings)
        self._bad = num_malicious_nodes
        self.least = 4 * self._bad + 3

    def chosen(self, weights: Sequence[Weights]) -> list[int]:
        distances = self._distances(weights)
        left, taken = list(range(len(weights))), []
        for _ in range(len(weights) - 2 * self._bad):
            among = distances[left][:, left]
            taken.append(left.pop(int(krum_scores(among, self._bad).argmin())))
        return sorted(taken)

    def combined(self, stack: Tensor) -> Tensor:
        median = trimmed_mean(stack, (len(stack) - 1) // 2)
        nearest = torch.argsort((stack - median).abs(), dim=0, stable=True)
        return stack.gather(0, nearest[: len(stack) - 2 * self._bad]).mean(dim=0)


def least_trimmed(beta: float) -> int:
    """Return from how many clients on a share of `beta`, which is positive, is at least one."""
    return -(-1 // decimal(beta))


def krum_scores(distances: Tensor, bad: int) -> Tensor:
    """Return the sum of each client's squared distances to its n - bad - 2 nearest others, [K]."""
    count = len(distances)
    others = distances.clone().fill_diagonal_(torch.inf)
    nearest = others.sort(dim=1).values[:, : min(max(1, count - bad - 2), count - 1)]
    return nearest.sum(dim=1)


def trimmed_mean(stack: Tensor, cut: int) -> Tensor:
    """Return the coordinate-wise mean, [*shape], of [K, *shape] but the `cut` at each end."""
    return stack.sort(dim=0).values[cut : len(stack) - cut].mean(dim=0)


def weighted_median(stack: Tensor, shares: Tensor) -> Tensor:
    """Return the coordinate-wise median, [*shape], of [K, *shape] that count by `shares`, [K].

    The shares, of 1 together, of the values below it and above it are at most one half each. Where
    a whole interval is so, it is its middle: with equal shares, the median of any number.
    """
    values, order = stack.reshape(len(stack), stack[0].numel()).sort(dim=0)
    below = shares[order].cumsum(dim=0)  # and up to it
    lower, upper = (
        (below < half).sum(dim=0, keepdim=True).clamp(max=len(stack) - 1)
        for half in (0.5 - _EVEN, 0.5 + _EVEN)
    )
    return ((values.gather(0, lower) + values.gather(0, upper)) / 2).view(stack.shape[1:])
