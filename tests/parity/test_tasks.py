"""Every task, with examples of unequal weight and length: the same step however it is divided.

Parity 1 (metrics over any partition), 2 (any world size, any accumulation), 3 (one full-batch local
step on all clients is one data-parallel step) and 5 (stacked = captured = sequential).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distributed.loop.example_order import batches
from distributed.topology import Topology
from federated.aggregation import Reduction, mean_of
from federated.engine.context import TrainingContext
from federated.engine.sequential import train_client
from federated.engine.stacked import FastTrainer
from federated.population.clients import Population
from federated.updates import Instruction
from heliotrope.config import FederatedConfig, chosen
from heliotrope.config.training import LossConfig
from heliotrope.data import Affine, Dataset, Dense, Examples, Info, Partition, Ragged, Windows
from heliotrope.data.preparation import Preparation
from heliotrope.evaluation import evaluate
from heliotrope.models.matrix_factorization import MatrixFactorization
from heliotrope.tasks import Task, example_weights, task_of
from heliotrope.training.loop import Recipe, train_batches
from tests.support import fresh_seed

_COUNT = 37


class Tabular(nn.Module):
    """A number from columns of numbers and of categories."""

    def __init__(self) -> None:
        super().__init__()
        self.of = nn.Embedding(7, 3)
        self.out = nn.Sequential(nn.Linear(4 + 6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        return self.out(torch.cat([numeric, self.of(category).flatten(1)], dim=1))


class Recurrent(nn.Module):
    """The next token of each."""

    def __init__(self) -> None:
        super().__init__()
        self.of, self.layer = nn.Embedding(9, 5), nn.LSTM(5, 6, batch_first=True)
        self.out = nn.Linear(6, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.layer(self.of(tokens))[0])


class Bag(nn.Module):
    """A class from the mean of a text's tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.of, self.out = nn.Embedding(9, 5), nn.Linear(5, 3)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(tokens.shape[1]) < lengths[:, None]
        total = (self.of(tokens) * inside[..., None]).sum(1)
        return self.out(total / lengths.clamp(min=1)[:, None])


def _lengths(draw: np.random.Generator) -> np.ndarray:
    """Lengths that differ by two orders of magnitude, and an empty one."""
    return np.concatenate([[0, 1, 150], draw.integers(1, 40, _COUNT - 3)])


def _images(draw: np.random.Generator) -> tuple[Info, Examples, nn.Module]:
    pixels = draw.integers(0, 256, (_COUNT, 1, 4, 3), dtype=np.uint8)
    fields = {
        "image": Dense(pixels, Affine(0.01, -1.0)),
        "label": Dense(draw.integers(0, 3, _COUNT)),
    }
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
    return Info(class_names=("a", "b", "c")), Examples(fields), model


def _texts(draw: np.random.Generator) -> tuple[Info, Examples, nn.Module]:
    offsets = np.concatenate([[0], np.cumsum(_lengths(draw))])
    tokens = Ragged(draw.integers(2, 9, offsets[-1], dtype=np.uint8), offsets)
    fields = {"tokens": tokens, "label": Dense(draw.integers(0, 3, _COUNT))}
    return Info(class_names=("a", "b", "c")), Examples(fields), Bag()


def _table(draw: np.random.Generator) -> tuple[Info, Examples, nn.Module]:
    fields = {
        "numeric": Dense(draw.normal(size=(_COUNT, 4)).astype(np.float32)),
        "category": Dense(draw.integers(0, 7, (_COUNT, 2))),
        "target": Dense(draw.normal(150, 70, _COUNT).astype(np.float32)),
    }
    info = Info(task="regression", target_mean=150.0, target_std=70.0)
    return info, Examples(fields), Tabular()


def _ratings(draw: np.random.Generator) -> tuple[Info, Examples, nn.Module]:
    fields = {
        "user": Dense(draw.integers(0, 4, _COUNT)),
        "item": Dense(draw.integers(0, 9, _COUNT)),
        "rating": Dense(draw.integers(1, 6, _COUNT).astype(np.float32)),
    }
    info = Info(task="rating", users=4, items=9, target_mean=3.5, target_std=1.1)
    return info, Examples(fields), MatrixFactorization(4, 9, 3)


def _next(draw: np.random.Generator, width: int | None) -> tuple[Info, Examples, nn.Module]:
    lengths = _lengths(draw) if width is None else np.minimum(_lengths(draw), width)
    starts = np.cumsum(lengths + 1) - lengths - 1
    stream = draw.integers(2, 9, int((lengths + 1).sum()), dtype=np.uint8)
    fields = {
        "tokens": Windows(stream, starts, lengths, width),
        "next": Windows(stream, starts + 1, lengths, width),
    }
    info = Info(task="next_token", vocabulary=("", "?", *"abcdefg"))
    return info, Examples(fields), Recurrent()


_PROBLEMS: dict[str, Callable[[np.random.Generator], tuple[Info, Examples, nn.Module]]] = {
    "classes of images": _images,
    "classes of texts": _texts,
    "regression": _table,
    "ratings": _ratings,
    "next token, windows": lambda draw: _next(draw, 16),
    "next token, ragged": lambda draw: _next(draw, None),
}


@pytest.fixture(params=_PROBLEMS)
def problem(request: pytest.FixtureRequest) -> tuple[Task, Examples, nn.Module]:
    draw = np.random.default_rng(fresh_seed())
    torch.manual_seed(int(draw.integers(2**31)))
    info, train, model = _PROBLEMS[request.param](draw)
    return (
        task_of(Dataset(request.param, train, train, train, info, Preparation((), "none", ""))),
        train,
        model.double(),
    )


class _InDouble:
    """A task whose model computes in float64, so that a wrong formula is told from rounding."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> object:
        return getattr(self._task, name)

    def arguments(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        given = self._task.arguments(batch)
        return tuple(value.double() if value.is_floating_point() else value for value in given)

    def call(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(*self.arguments(batch))


Problem = tuple[Task, Examples, nn.Module]


def _gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _plainly(task: Task, train: Examples, model: nn.Module, rows: Tensor) -> Tensor:
    """The gradient of a step as a reader would write it: one example at a time."""
    model.zero_grad()
    weight = example_weights(task, train)[rows].sum()
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        batch = train.take(row[None])
        total = total + task.losses(task.call(model, batch), batch).sum()
    (total / max(1, int(weight))).backward()
    return _gradient(model)


@pytest.mark.parametrize("accumulation_steps", [1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_a_step_is_the_same_for_any_world_size_and_accumulation(
    problem: Problem, world: int, accumulation_steps: int
) -> None:
    task, train, model = problem
    task = _InDouble(task)  # type: ignore[assignment]
    weights, order = example_weights(task, train), torch.randperm(_COUNT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for batch_size in (9, 36):  # the last batch has one example: most ranks have none
        ranks = [
            list(batches(train, weights, order, batch_size, Topology(rank, world), 1, 0))
            for rank in range(world)
        ]
        for number, rows in enumerate(torch.split(order, batch_size)):
            expected = _plainly(task, train, model, rows)
            found = torch.zeros_like(expected)
            loss_sum = 0.0
            for rank in ranks:
                recipe = Recipe(accumulation_steps=accumulation_steps)
                totals = train_batches(model, optimizer, task, [rank[number]], recipe=recipe)
                loss_sum += totals.loss_sum
                found += _gradient(model) / world
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
            whole = train.take(rows)
            losses = task.losses(task.call(model, whole), whole)
            assert loss_sum == pytest.approx(float(losses.detach().sum()), rel=1e-6)


def test_metrics_over_any_partition_are_those_over_the_whole(problem: Problem) -> None:
    task, train, model = problem
    model.float()
    whole = evaluate(model, task, train, _COUNT).compute()
    draw = np.random.default_rng(fresh_seed())
    for batch_size in (1, 5, 100):
        parts = np.split(draw.permutation(_COUNT), np.sort(draw.integers(0, _COUNT, 4)))
        measured = [evaluate(model, task, train, batch_size, part.tolist()) for part in parts]
        merged = functools.reduce(operator.add, measured).compute()
        # R2 is 1 less a ratio: near 0 it has the rounding of that 1.
        assert merged == pytest.approx(whole, rel=1e-5, abs=1e-6, nan_ok=True)


def _context(problem: Problem, sizes: list[int], batch_size: int | None) -> TrainingContext:
    task, train, model = problem
    held = np.random.default_rng(1).permutation(_COUNT)
    return TrainingContext(
        model=model.float(),
        task=task,
        train=train,
        population=Population(Partition(held, np.cumsum([0, *sizes])), 0.0, 3),
        optimizer=chosen("optimizer", "sgd", lr=0.5),
        loss=LossConfig(),
        federated=FederatedConfig(batch_size=batch_size),
        run_seed=3,
        evaluation_batch_size=16,
        central={},
    )


def test_every_way_of_training_clients_gives_the_same_updates(problem: Problem) -> None:
    context = _context(problem, [1, 20, 9, 7], 4)
    weights = {name: v.clone() for name, v in context.model.state_dict().items()}
    cohort, order, trainer = [0, 1, 2, 3], Instruction(1), FastTrainer(context)
    expected = {c: train_client(context, weights, order, c).rows()[0] for c in cohort}
    stacked = trainer.train_stacked(weights, order, cohort).rows()
    captured = [trainer.train_one(weights, order, client).rows()[0] for client in cohort]
    for update in (*stacked, *captured):
        wanted = expected[update.clients[0]]
        assert (update.weight, update.weight_seen) == (wanted.weight, wanted.weight_seen)
        assert (update.seen, update.steps) == (wanted.seen, wanted.steps)
        assert update.loss_sum == pytest.approx(wanted.loss_sum, rel=1e-4)
        for name, value in update.arrays.items():
            torch.testing.assert_close(value, wanted.arrays[name], rtol=1e-4, atol=1e-5)


def test_a_full_batch_step_of_all_clients_is_one_step_on_all_examples(problem: Problem) -> None:
    context = _context(problem, [1, 20, 9, 7], None)
    if context.personal:
        pytest.skip("each client steps with weights of its own, which it does not send")
    weights = {name: v.clone() for name, v in context.model.state_dict().items()}
    gradient = _plainly(context.task, context.train, context.model, torch.arange(_COUNT))
    start = nn.utils.parameters_to_vector(context.model.parameters()).detach()
    reduction = Reduction(weights, context.total_weight)
    assert (
        reduction.add(FastTrainer(context).train_stacked(weights, Instruction(1), range(4))) == []
    )
    partial = reduction.partial()
    assert partial is not None
    assert partial.weight == context.total_weight
    mean = mean_of([partial], weights).weights(weights)
    found = torch.cat([mean[name].flatten() for name, _ in context.model.named_parameters()])
    torch.testing.assert_close(found, start - 0.5 * gradient, rtol=1e-4, atol=1e-6)
