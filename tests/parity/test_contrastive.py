"""The contrastive loss over a global batch: exact for any world size, accumulation and evaluation.

Parity 1, 2 and 5; item 3 has no meaning here, since a client's negatives are those of its batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distributed.communication.exchange import gathered_rows
from distributed.loop.example_order import batches
from distributed.topology import Topology
from federated.engine.context import TrainingContext
from federated.engine.execution import ExecutionPlan
from federated.engine.start_loss import start_loss
from federated.pools.cohort_worker import CohortWorker
from federated.population import Population
from federated.updates import Instruction
from heliotrope.data import Examples, Partition
from heliotrope.errors import RunFailedError
from heliotrope.evaluation import evaluate
from heliotrope.models.two_towers import two_towers
from heliotrope.tasks import Contrastive, DataFacts, Task, example_weights
from heliotrope.training.loop import Recipe, TrainingBatch, train_batches
from tests.exemplars import EXEMPLARS
from tests.support import compose, fresh_seed

_COUNT = 23


@pytest.fixture
def problem() -> tuple[Task, Examples, nn.Module]:
    seed = fresh_seed()
    exemplar = EXEMPLARS["two_towers"]
    train = exemplar.examples(_COUNT, seed)
    facts = exemplar.task_of(train).facts
    task = Contrastive(DataFacts("pairs", facts.info, train.example()), 6)
    model = two_towers(task, channels=[4, 6], width=4, temperature=0.5).double()
    return _InDouble(task), train, model  # type: ignore[return-value]


class _InDouble:
    """A task whose model computes in float64, so that a wrong formula is told from rounding."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> object:
        return getattr(self._task, name)

    def call(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        given = self._task.arguments(batch)
        return model(*(v.double() if v.is_floating_point() else v for v in given))


def plain_loss(outputs: Tensor) -> Tensor:
    """The sum of the losses of a batch, as figure 3 of the paper has it."""
    logits = outputs[:, 0] @ outputs[:, 1].T
    places = torch.arange(len(logits))
    return (
        functional.cross_entropy(logits, places) + functional.cross_entropy(logits.T, places)
    ) * (len(logits) / 2)


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _among(ranks: list[TrainingBatch], task: Task, model: nn.Module) -> Callable[[int], Recipe]:
    """Return the recipe of each rank, whose `gather` knows the outputs of all."""
    with torch.no_grad():
        outputs = [task.call(model, batch.fields) for batch in ranks]

    def recipe(rank: int, accumulation_steps: int = 1) -> Recipe:
        def gather(rows: Tensor) -> tuple[Tensor, int]:
            torch.testing.assert_close(rows, outputs[rank])
            return torch.cat(outputs), sum(map(len, outputs[:rank]))

        return Recipe(accumulation_steps=accumulation_steps, gather=gather)

    return recipe


@pytest.mark.parametrize("accumulation_steps", [1, 3])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_a_step_has_the_negatives_of_the_global_batch(
    problem: tuple[Task, Examples, nn.Module], world: int, accumulation_steps: int
) -> None:
    task, train, model = problem
    weights, order = example_weights(task, train), torch.randperm(_COUNT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for batch_size in (9, 22):  # the last batch has five examples, or one
        ranks = [
            list(batches(train, weights, order, batch_size, Topology(rank, world), 1, 0))
            for rank in range(world)
        ]
        for number, rows in enumerate(torch.split(order, batch_size)):
            model.zero_grad()
            loss = plain_loss(task.call(model, train.take(rows)))
            (loss / len(rows)).backward()
            expected, found, loss_sum = gradient(model), 0.0, 0.0
            step = [rank[number] for rank in ranks]
            recipe_of = _among(step, task, model)
            for rank in range(world):
                recipe = recipe_of(rank, accumulation_steps)  # type: ignore[call-arg]
                totals = train_batches(model, optimizer, task, [step[rank]], recipe=recipe)
                loss_sum += totals.loss_sum
                found = found + gradient(model) / world
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
            assert loss_sum == pytest.approx(float(loss.detach()), rel=1e-9)


class _Drawing(nn.Module):
    """Two vectors of a number, with what `kind` draws or counts in each pass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0
        self.both = nn.Linear(3, 8)
        self.gru = nn.GRU(8, 8, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, image: Tensor, tokens: Tensor, *rest: Tensor) -> Tensor:
        hidden = self.both(image.flatten(1)[:, :3])
        self.calls += 1
        if self.kind == "counter":
            hidden = hidden * self.calls
        elif self.kind == "function":
            hidden = functional.dropout(hidden, 0.5)
        else:
            hidden = self.gru(hidden[:, None])[0][:, 0]
        return hidden.view(-1, 2, 4)


@pytest.mark.parametrize("kind", ["function", "gru"])
def test_both_passes_of_accumulation_draw_alike(
    problem: tuple[Task, Examples, nn.Module], kind: str
) -> None:
    task, train, _ = problem
    model = _Drawing(kind).double()
    batch = TrainingBatch(train.take(torch.arange(_COUNT)), _COUNT, _COUNT, seed=1)
    drawn = fresh_seed()
    torch.manual_seed(drawn)
    outputs = torch.cat([task.call(model, part.fields) for part in batch.parts(3)])
    (plain_loss(outputs) / _COUNT).backward()
    expected, state = gradient(model), torch.get_rng_state()
    torch.manual_seed(drawn)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_batches(model, optimizer, task, [batch], recipe=Recipe(accumulation_steps=3))
    torch.testing.assert_close(gradient(model), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)  # the next step draws anew


def test_a_model_whose_passes_differ_is_refused(
    problem: tuple[Task, Examples, nn.Module],
) -> None:
    task, train, _ = problem
    model = _Drawing("counter").double()
    before = model.both.weight.detach().clone()
    batch = TrainingBatch(train.take(torch.arange(_COUNT)), _COUNT, _COUNT, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RunFailedError, match=r"such as a count of its calls.*accumulation_steps=1"):
        train_batches(model, optimizer, task, [batch], recipe=Recipe(accumulation_steps=3))
    assert torch.equal(model.both.weight, before)


def test_evaluation_compares_with_the_whole_split_however_it_is_divided(
    problem: tuple[Task, Examples, nn.Module],
) -> None:
    task, train, model = problem
    with torch.no_grad():
        outputs = task.call(model.eval(), train.take(torch.arange(_COUNT)))
    logits = outputs[:, 0] @ outputs[:, 1].T
    own = logits.diag()
    expected = {"loss": float(plain_loss(outputs)) / _COUNT}
    for way, scores in (("image_to_text", logits), ("text_to_image", logits.T)):
        ranks = (scores >= own[:, None]).sum(dim=1)  # an equal one counts as better
        for k in (1, 5, 10):
            expected[f"{way}_recall_at_{k}"] = float((ranks <= k).double().mean())
    for batch_size in (4, 50):
        assert evaluate(model, task, train, batch_size).compute() == pytest.approx(expected)
    parts = [torch.arange(10), torch.arange(10, 10), torch.arange(10, _COUNT)]
    total = task.metrics.zero()
    for place, part in enumerate(parts):
        before = sum(map(len, parts[:place]))
        total = total + evaluate(
            model, task, train, 4, part, gather=lambda _, first=before: (outputs, first)
        )
    assert total.count == _COUNT
    assert total.compute() == pytest.approx(expected)


def test_ranks_gather_rows_of_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, draw = [3, 0, 5], np.random.default_rng(fresh_seed())
    rows = [torch.from_numpy(draw.normal(size=(size, 2, 4))) for size in sizes]
    meeting, box = threading.Barrier(3), dict[int, Tensor]()
    ranks = threading.local()

    def all_gather(parts: list[Tensor], mine: Tensor) -> None:
        box[ranks.mine] = mine
        meeting.wait()
        for rank, part in enumerate(parts):
            part.copy_(box[rank])
        meeting.wait()

    monkeypatch.setattr("distributed.communication.exchange.dist.all_gather", all_gather)
    found: dict[int, tuple[Tensor, int]] = {}

    def work(rank: int) -> None:
        ranks.mine = rank
        found[rank] = gathered_rows(rows[rank], Topology(rank, 3))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank, first in enumerate((0, 3, 3)):
        assert torch.equal(found[rank][0], torch.cat(rows))
        assert found[rank][1] == first


def test_clients_have_the_negatives_of_their_own_batches() -> None:
    """Captured steps are as the plain loop's; stacks are not, whose padding would be negatives."""
    seed = fresh_seed()
    run = compose(
        "federated", "experiment=quickstart", "federated.batch_size=5", "optimizer.lr=0.1"
    )
    exemplar, sizes = EXEMPLARS["two_towers"], [7, 12]
    train = exemplar.examples(sum(sizes), seed)
    facts = exemplar.task_of(train).facts
    task = Contrastive(DataFacts("pairs", facts.info, train.example()), 6)
    parts = Partition(np.arange(sum(sizes)), np.cumsum([0, *sizes]))
    clients = TrainingContext(
        model=two_towers(task, channels=[4, 6], width=4, temperature=0.5),
        task=task,
        train=train,
        population=Population(parts, 0.5, seed),
        optimizer=run.optimizer,
        loss=run.loss,
        federated=run.federated,
        run_seed=seed,
        evaluation_batch_size=2,
        central={"test": train},
    )
    worker, weights = CohortWorker(clients, 1), clients.global_weights
    decision = worker.decide(2, ())
    assert decision.execution is not None
    assert decision.execution.kind == "captured"
    assert "enter one another's losses" in decision.reasons["batched"]
    plans = [ExecutionPlan(kind, 1) for kind in ("sequential", "captured")]
    replies = [worker.train(weights, Instruction(1), [0, 1], plan, False) for plan in plans]
    for one, other in zip(replies[0].updates, replies[1].updates, strict=True):
        for name, value in one.arrays.items():
            torch.testing.assert_close(other.arrays[name], value, rtol=1e-4, atol=1e-5)

    model = clients.fresh_model(weights)
    held = clients.population.holdout_indices(1)
    expected = evaluate(model, task, train, 50, held).compute()
    row = worker.evaluate(weights, [0, 1]).rows()[1]
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    told = start_loss(clients, weights, Instruction(1), 1)  # also of batches of 2
    mine = task.call(
        model.eval(), train.take(torch.from_numpy(clients.population.train_indices(1)))
    )
    assert told == pytest.approx(float(plain_loss(mine).detach()) / len(mine), rel=1e-5)
    halves = [worker.evaluate_centrally(weights, part, 2)["test"] for part in (0, 1)]
    whole = evaluate(model, task, train, 50).compute()
    assert (halves[0] + halves[1]).compute() == pytest.approx(whole)
