"""Clients evaluated together get what each gets alone, or are evaluated alone, and it is said."""

from __future__ import annotations

import copy
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from federated.engine.client_metrics import Evaluations, merged
from federated.engine.context import TrainingContext
from federated.engine.evaluation import ClientEvaluator
from federated.engine.time_limit import Watch
from federated.population import Population
from heliotrope.config import FederatedConfig, chosen
from heliotrope.config.training import LossConfig
from heliotrope.data import Partition
from heliotrope.evaluation import evaluate
from heliotrope.metrics import Metrics, ScoreCurves
from tests.support import (
    confusion_of,
    fresh_seed,
    global_random_state_untouched,
    labelled,
    small_task,
    values_of,
)

_TASK = small_task(classes=4, shape=(6,))


class _Net(nn.Module):
    """A net whose hidden layer `between` changes in some way of its own."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor] = lambda _, h: h) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 12), nn.Linear(12, 4)
        self.norm = nn.BatchNorm1d(12, track_running_stats=False)
        self.counted = nn.BatchNorm1d(12)
        self.register_buffer("memory", torch.zeros(12), persistent=False)
        self.passes, self.seen = 0, [0.0]
        self.between = between

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.between(self, self.hidden(inputs))
        outputs: Tensor = self.out(torch.relu(hidden))
        return outputs


def _remembering(net: nn.Module, hidden: Tensor) -> Tensor:
    hidden = hidden - net.memory
    net.memory.mul_(0.9).add_(hidden.mean(0), alpha=0.1)
    return hidden


def _counting(net: nn.Module, hidden: Tensor) -> Tensor:
    net.passes += 1
    return hidden * (1 + net.passes * 1e-3)


def _listing(net: nn.Module, hidden: Tensor) -> Tensor:
    net.seen.append(float(hidden.abs().sum()) * 1e-3)
    return hidden + sum(net.seen)


def _wearing(net: nn.Module, hidden: Tensor) -> Tensor:
    net.out.weight.data.mul_(0.999)
    return hidden


_EACH_BY_ITSELF: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "plain": lambda _, h: h,
    "running statistics": lambda net, h: net.counted(h),
    "clamped weights": lambda net, h: (net.out.weight.data.clamp_(-0.05, 0.05), h)[1],
}
_TOGETHER_DIFFERENT: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "statistics of the batch": lambda net, h: net.norm(h),
    "centred": lambda _, h: h - h.mean(0, keepdim=True),
    "a statistic as a number": lambda _, h: h / max(1e-3, h.std().tolist()),
    "the largest": lambda _, h: h / h.max(),
    "the first example": lambda _, h: h + h[:1],
    "the size": lambda _, h: h * (1 + 1 / len(h)),
    "a memory": _remembering,
    "a count": _counting,
    "a list": _listing,
    "worn weights": _wearing,
    "Python's generator": lambda _, h: h * random.random(),
    "NumPy's generator": lambda _, h: h * float(np.random.rand()),  # noqa: NPY002
    "torch's generator": lambda _, h: nn.functional.dropout(h, 0.5, training=True),
}


def _clients(
    model: nn.Module, sizes: Sequence[int], batch_size: int = 8, timeout: float | None = None
) -> TrainingContext:
    seed = fresh_seed()
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    inputs = torch.randn(total, 6, generator=generator)
    train = labelled(inputs, torch.randint(4, (total,), generator=generator))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    parts = Partition(np.random.default_rng(seed).permutation(total), offsets)
    return TrainingContext(
        model=model,
        task=_TASK,
        train=train,
        population=Population(parts, 0.5, seed),
        optimizer=chosen("optimizer", "sgd"),
        loss=LossConfig(),
        federated=FederatedConfig(client_timeout=timeout),
        run_seed=seed,
        evaluation_batch_size=batch_size,
        central={},
    )


def _weights(clients: TrainingContext) -> dict[str, Tensor]:
    """Return others than the model was built with; variances stay positive."""
    state = clients.model.state_dict()
    return {
        name: value + 0.3 * torch.rand(value.shape) if value.is_floating_point() else value.clone()
        for name, value in state.items()
    }


def _by_itself(clients: TrainingContext, weights: dict[str, Tensor], client: int) -> Metrics:
    model = copy.deepcopy(clients.model)
    model.load_state_dict(weights)
    held = clients.population.holdout_indices(client).tolist()
    return evaluate(model, _TASK, clients.train, clients.evaluation_batch_size, held)


def _evaluated(
    clients: TrainingContext, weights: dict[str, Tensor], cohort: Sequence[int]
) -> Evaluations:
    return ClientEvaluator(clients, Watch()).evaluate(weights, cohort)


def _assert_each_got_its_own(
    done: Evaluations, clients: TrainingContext, weights: dict[str, Tensor]
) -> None:
    """Fail unless each client got what it gets by itself, and the total is their sum."""
    expected = {client: _by_itself(clients, weights, client) for client in done.clients}
    for row, (client, metrics) in zip(done.rows(), expected.items(), strict=True):
        numbers = metrics.compute() | {"client": client, "examples": metrics.count}
        assert row == pytest.approx(numbers, rel=1e-5)
    whole = sum(expected.values(), start=_TASK.metrics.zero())
    assert (confusion_of(done.total) == confusion_of(whole)).all()
    assert done.total.compute() == pytest.approx(whole.compute(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [3, 8, 1000])
@pytest.mark.parametrize("name", _EACH_BY_ITSELF)
def test_clients_together_get_what_each_gets_alone(name: str, batch_size: int) -> None:
    clients = _clients(_Net(_EACH_BY_ITSELF[name]), [9, 2, 30, 4, 16, 5, 2, 7] * 3, batch_size)
    weights, cohort = _weights(clients), [0, 1, 2, 5, 7, 9, 13, 20, 23]
    done = _evaluated(clients, weights, cohort)
    assert done.alone is None
    assert done.failures == []
    assert done.clients == tuple(cohort)
    _assert_each_got_its_own(done, clients, weights)


@pytest.mark.parametrize("batch_size", [8, 1000])
@pytest.mark.parametrize("name", _TOGETHER_DIFFERENT)
def test_a_model_that_looks_beyond_an_example_is_evaluated_client_by_client(
    name: str, batch_size: int
) -> None:
    model = _Net(_TOGETHER_DIFFERENT[name])
    clients = _clients(model, [9, 12, 30, 4, 16, 5, 22, 7] * 3, batch_size)
    weights, cohort = _weights(clients), list(range(24))
    done = _evaluated(clients, weights, cohort)
    drawn = "generator" in name
    if batch_size == 1000 and name in ("a memory", "a count", "worn weights"):
        assert done.alone is None  # one pass for all is each one's first
    else:
        assert done.alone is not None
        assert ("draws random numbers" in done.alone) == drawn
    assert done.failures == []
    if not drawn:
        _assert_each_got_its_own(done, clients, weights)
    again = _evaluated(clients, weights, cohort[3:])  # what a client draws is its own
    for row, before in zip(again.rows(), done.rows()[3:], strict=True):
        assert row == pytest.approx(before, rel=1e-5)


def test_evaluation_leaves_the_module_and_the_generators_as_they_were() -> None:
    model = _Net(_remembering)
    clients = _clients(model, [9, 12, 30])
    weights, before = _weights(clients), copy.deepcopy(model.state_dict())
    with global_random_state_untouched():
        _evaluated(clients, weights, [0, 1, 2])
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert torch.equal(model.memory, torch.zeros(12))
    assert model.training


def test_a_client_with_nan_or_a_label_that_is_none_is_named_and_the_others_are_right() -> None:
    clients = _clients(_Net(), [9, 12, 30, 8, 11])
    values_of(clients.train, "image")[clients.population.holdout_indices(1)[0]] = torch.nan
    weights = _weights(clients)
    done = _evaluated(clients, weights, range(5))
    assert done.clients == (0, 2, 3, 4)
    assert done.alone is None
    assert [(f.client, f.reason) for f in done.failures] == [
        (1, "evaluation: its loss is NaN or infinite")
    ]
    values_of(clients.train, "label")[clients.population.holdout_indices(3)[0]] = 99
    done = _evaluated(clients, weights, range(5))
    assert [failure.client for failure in done.failures] == [1, 3]
    assert done.alone is None
    _assert_each_got_its_own(done, clients, weights)


@pytest.mark.parametrize("sleeps", [0.4, 60.0])
def test_a_client_that_takes_longer_than_a_client_may_is_named(sleeps: float) -> None:
    marked = 777.0

    class Slow(_Net):
        def forward(self, inputs: Tensor) -> Tensor:
            if bool((inputs == marked).any()):
                time.sleep(sleeps)
            return super().forward(inputs)

    clients = _clients(Slow(), [20] * 5, batch_size=4, timeout=0.3)
    values_of(clients.train, "image")[clients.population.holdout_indices(3)] = marked
    done = _evaluated(clients, _weights(clients), range(5))
    assert done.clients == (0, 1, 2, 4)
    (failure,) = done.failures
    assert failure.client == 3
    assert failure.reason.startswith("evaluation: TimeoutError: not done after 0.3 s")


def test_a_model_that_refuses_many_examples_is_evaluated_in_parts() -> None:
    class Small(_Net):
        def forward(self, inputs: Tensor) -> Tensor:
            if len(inputs) > 6:
                raise ValueError("at most six at once")
            return super().forward(inputs)

    clients = _clients(Small(), [8, 10, 12, 4, 4, 2], batch_size=100)
    weights = _weights(clients)
    done = _evaluated(clients, weights, range(6))
    assert done.clients == (0, 1, 2, 3, 4, 5)
    assert done.failures == []
    _assert_each_got_its_own(done, clients, weights)


def test_a_model_that_refuses_made_up_examples_is_evaluated_together() -> None:
    class Picky(_Net):
        def forward(self, inputs: Tensor) -> Tensor:
            if inputs.max() > 4:
                raise ValueError("out of range")
            return super().forward(inputs)

    clients = _clients(Picky(), [8, 10, 12])
    values_of(clients.train, "image").clamp_(-3, 3)[:, 0] = -3
    weights = _weights(clients)
    done = _evaluated(clients, weights, range(3))
    assert done.alone is None
    assert done.failures == []
    _assert_each_got_its_own(done, clients, weights)


def test_one_bad_client_among_many_does_not_make_each_one_be_evaluated_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clients = _clients(_Net(), [6] * 200)
    values_of(clients.train, "label")[clients.population.holdout_indices(77)[0]] = 99
    evaluator, alone = ClientEvaluator(clients, Watch()), []
    evaluate_alone = evaluator._alone
    monkeypatch.setattr(
        evaluator, "_alone", lambda module, c: (alone.append(c), evaluate_alone(module, c))[1]
    )
    done = evaluator.evaluate(_weights(clients), range(200))
    assert alone == [77]
    assert len(done.clients) == 199
    assert [failure.client for failure in done.failures] == [77]


def test_workers_parts_are_put_together_in_client_order() -> None:
    clients = _clients(_Net(), [9, 12, 30, 8, 11])
    weights = _weights(clients)
    parts = [_evaluated(clients, weights, part) for part in ([1, 4], [0, 3], [2])]
    whole, joined = _evaluated(clients, weights, range(5)), merged(parts)
    assert joined.clients == (0, 1, 2, 3, 4)
    assert joined.rows() == [pytest.approx(row) for row in whole.rows()]
    assert joined.total.compute() == pytest.approx(whole.total.compute())


@pytest.mark.parametrize("between", ["plain", "centred"])
def test_no_more_than_a_block_of_clients_vectors_of_sums_is_in_memory(
    between: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = _clients(_Net((_EACH_BY_ITSELF | _TOGETHER_DIFFERENT)[between]), [2] * 200)
    task = small_task(classes=4, shape=(6,))
    task.metrics = metrics = replace(task.metrics, members=(*task.metrics.members, ScoreCurves(4)))
    clients = replace(clients, task=task)
    monkeypatch.setattr("federated.engine.evaluation._CELLS", 8 * metrics.size)
    tracemalloc.start()
    done = _evaluated(clients, clients.global_weights, range(200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (done.alone is None) == (between == "plain")
    assert peak < 200 * metrics.zero().sums.nbytes / 3
    assert len(done.clients) == len(done.numbers) == 200


def test_metrics_of_groups_are_those_of_each_group() -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    outputs, targets = torch.randn(60, 4, generator=generator), torch.randint(4, (60,))
    owners = torch.randint(20, (60,), generator=generator)
    owners[owners == 3] = 4
    groups = _TASK.metrics.measure_groups(outputs, {"label": targets}, owners, 20)
    computed = groups.compute()
    for place in range(20):
        mine = owners == place
        alone = _TASK.metrics.measure(outputs[mine], {"label": targets[mine]})
        found = {name: values[place] for name, values in computed.items()}
        assert found == pytest.approx(alone.compute(), nan_ok=True)
        assert groups.counts[place] == alone.count
    assert np.isnan(computed["accuracy"][3])
    whole = _TASK.metrics.measure(outputs, {"label": targets})
    assert groups.total().compute() == pytest.approx(whole.compute())
