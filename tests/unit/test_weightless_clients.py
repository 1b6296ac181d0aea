"""Clients whose training examples weigh nothing are not drawn, and said before the first round."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from federated.engine.context import TrainingContext, assemble
from federated.simulation import _say_who_weighs_nothing
from heliotrope.data import Partition, load
from heliotrope.errors import ConfigError
from heliotrope.tasks import Classification, DataFacts
from tests.support import compose, everything


class _SomeWeigh(Classification):
    """Only examples of the classes 0 to 4 weigh anything."""

    def weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        return (batch["label"] < 5).to(torch.int64)


def test_clients_that_weigh_nothing_are_not_drawn() -> None:
    run = compose(
        "federated",
        "experiment=quickstart",
        "federated.clients_per_round=2",
        "federated.holdout_fraction=0",
    )
    dataset = load(run.data, run.seed)
    train = dataset.train
    labels = everything(train)["label"].numpy()
    order, count = np.argsort(labels, kind="stable"), int((labels < 5).sum())
    task = _SomeWeigh(DataFacts.of(dataset))

    def context(offsets: list[int]) -> TrainingContext:
        return assemble(run, task, train, Partition(order, np.array([0, *offsets, len(order)])))

    clients = context([40, count, count + 3])  # the last two have the classes 5 to 9
    assert clients.weights_of([0, 1, 2, 3]) == (40, count - 40, 0, 0)
    assert clients.on(torch.device("cpu")).population.draw(1, 2) == [0, 1]
    said: list[str] = []
    _say_who_weighs_nothing(clients.population, SimpleNamespace(say=said.append))  # type: ignore[arg-type]
    assert said == [
        "2 of 4 clients are not drawn, such as client 2: their training examples weigh nothing"
    ]
    with pytest.raises(
        ConfigError, match=r"=2 is more than the 1 clients .* client 1 and 1 others"
    ):
        context([count, count + 3])
