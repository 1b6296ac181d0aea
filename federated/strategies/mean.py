"""Strategies that move the global weights along the clients' mean difference, in float64.

Buffers (BatchNorm's statistics and counters) are the clients' mean by their weights in each of
these strategies: only floating-point parameters go through a server optimizer.

Notation of Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 2: the round t (from 1),
the mean difference Delta_t, the moments m_t and v_t, the server's rate eta.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor

from ..aggregation import Mean, Reduction, mean_of, moved
from ..flower.messages import read_arrays, to_record
from ..flower.vetting import updates_of
from ..updates import Stack, Weights
from .facts import ModelFacts

__all__ = ["FedAdagrad", "FedAdam", "FedAdamCorrected", "FedAvg", "FedAvgM", "FedProx", "FedYogi"]
__all__ += ["MeanStrategy"]

_Moments = dict[str, Tensor]


class MeanStrategy(FlowerFedAvg):
    """A step of the server along the mean difference; by itself, the mean.

    Takes replies of clients, as any Flower strategy does, or their mean, which is the same.

    Parameters
    ----------
    facts
        Which arrays are parameters, and how much a round weighs at most.
    **settings
        Of `flwr.serverapp.strategy.FedAvg`.
    """

    def __init__(self, facts: ModelFacts, **settings: Any) -> None:
        super().__init__(**settings)
        self._facts = facts
        self._start: ArrayRecord | None = None  # the global weights of the round

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.begin_round(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def begin_round(self, arrays: ArrayRecord) -> None:
        """Take `arrays` as the round's global weights, also where no client is asked."""
        self._start = arrays

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new model from replies with weights; None if there are none that fit.

        A reply that does not is left out, and logged with its client.
        """
        weights = self._global_weights()
        start = {**weights, **self.beside(weights)}
        updates = updates_of(replies, start)
        return self.aggregate_updates(server_round, updates, start) if updates else (None, None)

    def aggregate_updates(
        self, server_round: int, updates: Sequence[tuple[Message, Stack]], start: Weights
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Return the new model from updates of `start` that are fit, with their replies."""
        most = max(self._facts.most_weight, sum(sum(stack.weights) for _, stack in updates))
        reduction = Reduction(start, most)
        for _, stack in updates:
            for failure in reduction.add(stack):
                raise ValueError(f"client {failure.client}: {failure.reason}")
        whole = reduction.partial()
        assert whole is not None
        mean = mean_of([whole], start)
        contents = [message.content for message, _ in updates]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        return self.aggregate_mean(server_round, mean), metrics

    def aggregate_mean(self, server_round: int, mean: Mean) -> ArrayRecord:
        """Return the new model from the mean difference to the round's global weights."""
        start = self._global_weights()
        parameters = {n: d for n, d in mean.differences.items() if n in self._facts.parameters}
        steps = {**mean.differences, **self.steps(server_round, parameters)}
        return to_record({name: moved(value, steps[name]) for name, value in start.items()})

    def steps(self, server_round: int, differences: _Moments) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Return what is added to each parameter, float64, for its mean difference."""
        return differences

    def beside(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Return what clients keep, and send the changes of, beside `weights`: as it begins.

        By names that are not those of weights, in the type it is kept and sent in; zeros.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a later round needs of the earlier ones."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""

    def _global_weights(self) -> dict[str, Tensor]:
        if self._start is None:
            raise RuntimeError("configure_train must come before the aggregation of a round")
        return read_arrays(self._start)


class FedAvg(MeanStrategy):
    """The mean of the clients' models by their weights, as by examples (McMahan et al. 2017)."""


class FedProx(MeanStrategy):
    """FedAvg over clients that minimise (mu/2)||w - w_global||^2 too (Li et al. 2020)."""

    def __init__(self, facts: ModelFacts, proximal_mu: float, **settings: Any) -> None:
        super().__init__(facts, **settings)
        self.proximal_mu = proximal_mu

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config["proximal-mu"] = self.proximal_mu
        return super().configure_train(server_round, arrays, config, grid)


class FedAvgM(MeanStrategy):
    """FedAvg with server momentum (Hsu et al. 2019): v <- beta v + Delta, w <- w + eta v."""

    def __init__(
        self,
        facts: ModelFacts,
        server_learning_rate: float,
        server_momentum: float,
        **settings: Any,
    ) -> None:
        super().__init__(facts, **settings)
        self._rate, self._momentum = server_learning_rate, server_momentum
        self._velocity: _Moments = {}

    def steps(self, server_round: int, differences: _Moments) -> Mapping[str, Tensor]:  # noqa: ARG002
        before = self._velocity or {n: torch.zeros_like(d) for n, d in differences.items()}
        self._velocity = {n: self._momentum * before[n] + d for n, d in differences.items()}
        return {name: self._rate * velocity for name, velocity in self._velocity.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"velocity": self._velocity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._velocity = dict(state["velocity"])


class _Adaptive(MeanStrategy):
    """Algorithm 2 of Reddi et al.: x <- x + eta m_t / (sqrt(v_t) + tau), v_0 = tau^2."""

    def __init__(
        self,
        facts: ModelFacts,
        eta: float,
        tau: float,
        beta_1: float = 0.0,
        beta_2: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(facts, **settings)
        self._eta, self._tau, self._beta_1, self._beta_2 = eta, tau, beta_1, beta_2
        self._first: _Moments = {}
        self._second: _Moments = {}
        self._second_at_first = tau**2

    def steps(self, server_round: int, differences: _Moments) -> Mapping[str, Tensor]:
        if not self._first:
            self._first = {n: torch.zeros_like(d) for n, d in differences.items()}
            self._second = {
                n: torch.full_like(d, self._second_at_first) for n, d in differences.items()
            }
        self._first = {
            n: self._beta_1 * self._first[n] + (1 - self._beta_1) * d
            for n, d in differences.items()
        }
        self._second = {n: self._moment(self._second[n], d * d) for n, d in differences.items()}
        rate = self._eta * self._correction(server_round)
        return {
            name: rate * first / (self._second[name].sqrt() + self._tau)
            for name, first in self._first.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "second": self._second}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._first, self._second = dict(state["first"]), dict(state["second"])

    def _moment(self, second: Tensor, square: Tensor) -> Tensor:
        """Return v_t from v_{t-1} and Delta_t^2."""
        raise NotImplementedError

    def _correction(self, server_round: int) -> float:  # noqa: ARG002 - of one subclass
        return 1.0


class FedAdagrad(_Adaptive):
    """v_t = v_{t-1} + Delta_t^2."""

    def _moment(self, second: Tensor, square: Tensor) -> Tensor:
        return second + square


class FedYogi(_Adaptive):
    """v_t = v_{t-1} - (1 - beta_2) Delta_t^2 sign(v_{t-1} - Delta_t^2)."""

    def _moment(self, second: Tensor, square: Tensor) -> Tensor:
        return second - (1 - self._beta_2) * square * torch.sign(second - square)


class FedAdam(_Adaptive):
    """v_t = beta_2 v_{t-1} + (1 - beta_2) Delta_t^2."""

    def _moment(self, second: Tensor, square: Tensor) -> Tensor:
        return self._beta_2 * second + (1 - self._beta_2) * square


class FedAdamCorrected(FedAdam):
    """FedAdam with Adam's bias correction, for which v_0 = 0 (Kingma and Ba 2015, section 2).

    The rate of round t is eta sqrt(1 - beta_2^t) / (1 - beta_1^t).
    """

    def __init__(self, facts: ModelFacts, **settings: Any) -> None:
        super().__init__(facts, **settings)
        self._second_at_first = 0.0

    def _correction(self, server_round: int) -> float:
        return math.sqrt(1 - self._beta_2**server_round) / (1 - self._beta_1**server_round)
