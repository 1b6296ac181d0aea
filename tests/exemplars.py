"""One small problem for each family of models: random examples, a task, a model with dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from heliotrope.data import Dense, Examples, Info, Ragged
from heliotrope.data.fields import Field
from heliotrope.metrics import Loss, MetricSet
from heliotrope.models.char_lstm import char_lstm
from heliotrope.models.embedding_bag import embedding_bag
from heliotrope.models.gpt import gpt
from heliotrope.models.gru import gru
from heliotrope.models.logistic import logistic
from heliotrope.models.matrix_factorization import matrix_factorization
from heliotrope.models.mlp import mlp
from heliotrope.models.two_towers import two_towers
from heliotrope.seeding import isolated_rng
from heliotrope.tasks import Classification, DataFacts, NextToken, Rating, Task

__all__ = ["EXEMPLARS", "Exemplar"]

_VOCABULARY = tuple(f"word {number}" for number in range(11))
_INFO = Info(
    class_names=("ham", "spam", "other"),
    numeric=("age", "weight"),
    categories={"sex": 3, "place": 5},
    vocabulary=_VOCABULARY,
    users=6,
    items=9,
    image_shape=(3, 8, 9),
)


class Pair(Task):
    """How far an image's vector is from that of its text: an example at a time."""

    @property
    def num_outputs(self) -> int:
        return 5

    @cached_property
    def metrics(self) -> MetricSet:
        return MetricSet((Loss(self.losses),))

    def losses(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return (outputs[:, 0] - outputs[:, 1]).square().sum(dim=1)


@dataclass(frozen=True)
class Exemplar:
    """How a model, its task and its examples are made."""

    fields: Callable[[int, torch.Generator], Mapping[str, Field]]
    task: Callable[[DataFacts], Task]
    build: Callable[[Task], nn.Module]

    def examples(self, count: int, seed: int) -> Examples:
        """Draw `count` examples."""
        return Examples(self.fields(count, torch.Generator().manual_seed(seed)))

    def task_of(self, examples: Examples) -> Task:
        """Return the task that they pose."""
        return self.task(DataFacts("small", _INFO, examples.example()))

    def model_of(self, task: Task, seed: int) -> nn.Module:
        """Return a model for the task."""
        with isolated_rng(seed):
            return self.build(task)


def _table(count: int, draw: torch.Generator) -> Mapping[str, Field]:
    category = [torch.randint(size, (count,), generator=draw) for size in (3, 5)]
    return {
        "numeric": Dense(torch.randn(count, 2, generator=draw)),
        "category": Dense(torch.stack(category, dim=1)),
        "label": Dense(torch.randint(3, (count,), generator=draw)),
    }


def _categories(count: int, draw: torch.Generator) -> Mapping[str, Field]:
    table = dict(_table(count, draw))
    del table["numeric"]
    return table


def _offsets(count: int, draw: torch.Generator) -> Tensor:
    lengths = torch.randint(1, 20, (count,), generator=draw)
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def _texts(count: int, draw: torch.Generator) -> Mapping[str, Field]:
    offsets = _offsets(count, draw)
    tokens = torch.randint(len(_VOCABULARY), (int(offsets[-1]),), generator=draw)
    labels = torch.randint(3, (count,), generator=draw)
    return {"tokens": Ragged(tokens.int(), offsets), "label": Dense(labels)}


def _streams(count: int, draw: torch.Generator) -> Mapping[str, Field]:
    offsets = _offsets(count, draw)
    tokens = torch.randint(len(_VOCABULARY), (2, int(offsets[-1])), generator=draw).int()
    return {"tokens": Ragged(tokens[0], offsets), "next": Ragged(tokens[1], offsets)}


def _ratings(count: int, draw: torch.Generator) -> Mapping[str, Field]:
    return {
        "user": Dense(torch.randint(6, (count,), generator=draw)),
        "item": Dense(torch.randint(9, (count,), generator=draw)),
        "rating": Dense(torch.randn(count, generator=draw)),
    }


def _pairs(count: int, draw: torch.Generator) -> Mapping[str, Field]:
    texts = _texts(count, draw)
    return {
        "image": Dense(torch.randn(count, 3, 8, 9, generator=draw)),
        "tokens": texts["tokens"],
    }


EXEMPLARS = {
    "logistic": Exemplar(_table, Classification, logistic),
    "logistic-categories": Exemplar(_categories, Classification, logistic),
    "mlp": Exemplar(_table, Classification, lambda task: mlp(task, hidden=[6, 5], dropout=0.3)),
    "mlp-embedding": Exemplar(
        _table, Classification, lambda task: mlp(task, hidden=[6, 5, 4], embedding=2)
    ),
    "embedding_bag": Exemplar(
        _texts, Classification, lambda task: embedding_bag(task, width=5, dropout=0.3, hidden=[4])
    ),
    "gru": Exemplar(
        _texts, Classification, lambda task: gru(task, width=4, hidden=6, layers=2, dropout=0.3)
    ),
    "char_lstm": Exemplar(
        _streams,
        NextToken,
        lambda task: char_lstm(task, width=4, hidden=6, layers=2, dropout=0.3),
    ),
    "char_lstm-wide": Exemplar(_streams, NextToken, lambda task: char_lstm(task, hidden=80)),
    "gpt": Exemplar(
        _streams, NextToken, lambda task: gpt(task, width=8, heads=2, context=19, dropout=0.3)
    ),
    "gpt-tied": Exemplar(
        _streams, NextToken, lambda task: gpt(task, width=8, heads=2, layers=1, tied=True)
    ),
    "matrix_factorization": Exemplar(
        _ratings, Rating, lambda task: matrix_factorization(task, width=3)
    ),
    "two_towers": Exemplar(
        _pairs, Pair, lambda task: two_towers(task, channels=[4, 6], width=4, temperature=0.5)
    ),
}
