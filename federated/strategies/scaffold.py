"""SCAFFOLD: control variates of the server and of each client correct the clients' drift."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from heliotrope.config import Run
from heliotrope.errors import ConfigError

from ..aggregation import Mean
from ..algorithms.control_variates import STATE
from ..flower.messages import EQUAL_WEIGHTS, to_record
from .facts import ModelFacts
from .mean import MeanStrategy

__all__ = ["Scaffold", "check_scaffold"]


class Scaffold(MeanStrategy):
    """Algorithm 1 of Karimireddy et al. 2020, arXiv:1910.06378, with option II for c_i.

    Of the clients S of a round, and N in all: x <- x + eta mean(y_i - x) and
    c <- c + |S|/N mean(c_i+ - c_i), means in which clients count alike. So c is the mean of all
    c_i, which begin at 0. It is kept in float64, and sent in the types of the weights. The
    client's half is `algorithms.ControlVariates`.
    """

    def __init__(self, facts: ModelFacts, server_learning_rate: float, **settings: Any) -> None:
        super().__init__(facts, **settings)
        self._rate = server_learning_rate
        self._control: dict[str, Tensor] = {}  # c, by the names that it is sent by

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config[EQUAL_WEIGHTS] = True
        self._start = arrays
        control = self.beside(self._global_weights())
        for name, value in self._control.items():
            control[name].copy_(value)
        sent = ArrayRecord({**arrays, **to_record(control)})
        messages = super().configure_train(server_round, sent, config, grid)
        self._start = arrays
        return messages

    def beside(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the control variates of the trained parameters as they begin."""
        names = [name for name in weights if name in self._facts.trained]
        return {f"{STATE}{name}": torch.zeros_like(weights[name]) for name in names}

    def aggregate_mean(self, server_round: int, mean: Mean) -> ArrayRecord:
        """Return the new model, and make c anew, from the means of how far all went."""
        share = len(mean.clients) / self._facts.clients
        self._control = {
            name: self._control.get(name, 0) + share * change
            for name, change in mean.differences.items()
            if name.startswith(STATE)
        }
        return super().aggregate_mean(server_round, mean)

    def steps(
        self,
        server_round: int,  # noqa: ARG002
        differences: dict[str, Tensor],
    ) -> Mapping[str, Tensor]:
        return {name: self._rate * difference for name, difference in differences.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"control": self._control}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._control = dict(state["control"])


def check_scaffold(run: Run) -> None:
    """Raise `ConfigError` where a client's way would not tell its mean gradient."""
    optimizer: Any = run.optimizer  # with the keys of its choice
    if optimizer.name != "sgd":
        raise ConfigError(
            "federated/strategy=scaffold makes control variates of the steps of plain SGD, but "
            f"optimizer={optimizer.name}. Set optimizer=sgd."
        )
    if optimizer.momentum:
        raise ConfigError(
            "federated/strategy=scaffold makes control variates of the steps of plain SGD, but "
            f"optimizer.momentum={optimizer.momentum:g}. Set optimizer.momentum=0."
        )
    if run.federated.client_momentum:
        raise ConfigError(
            f"federated.client_momentum={run.federated.client_momentum:g} would change what "
            "clients send, but not the control variates that federated/strategy=scaffold sends "
            "beside it. Set federated.client_momentum=0."
        )
    if run.federated.clip_update_norm is not None:
        raise ConfigError(
            f"federated.clip_update_norm={run.federated.clip_update_norm:g} would clip weights, "
            "but not the control variates that federated/strategy=scaffold sends beside them. Set "
            "federated.clip_update_norm=null."
        )
