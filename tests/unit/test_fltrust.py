"""FLTrust: the server's own examples, and the mean of updates by how far they go its way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from federated.components import build_components
from federated.engine.context import divide, prepared_for
from federated.flower.grid import CohortGrid
from federated.flower.messages import read_arrays, stamp, to_record, train_reply
from federated.population.root import root_examples
from federated.strategies import ModelFacts, build_strategy
from federated.strategies.fltrust import FLTrust, trusted_mean
from federated.updates import Instruction, Update, Weights
from heliotrope.data import Traits, load
from heliotrope.errors import ConfigError, RunFailedError
from tests.support import compose, fresh_seed

_TRUST = "federated/strategy=fltrust"
_SIZE = "federated.strategy.root_examples"
_Rows = NDArray[np.int64]


def _expected(updates: Sequence[Sequence[float]], server: Sequence[float]) -> list[float]:
    """Algorithm 2 of the paper, number by number."""
    numerator, total = [0.0] * len(server), 0.0
    length = sum(s * s for s in server) ** 0.5
    for update in updates:
        own = sum(u * u for u in update) ** 0.5
        if own == 0 or length == 0:
            continue
        cosine = sum(u * s for u, s in zip(update, server, strict=True)) / (own * length)
        score = max(0.0, cosine)
        total += score
        for place, value in enumerate(update):
            numerator[place] += score * length / own * value
    return [value / total for value in numerator] if total else numerator


_RANDOM = np.random.default_rng(fresh_seed()).normal(size=(6, 4)).tolist()


@pytest.mark.parametrize(
    ("updates", "server"),
    [
        (_RANDOM[:-1], _RANDOM[-1]),
        ([[1.0, 2, 3, 4]], [4.0, 3, 2, 1]),  # one client
        ([[0.0, 0, 0, 0], [1e6, 0, 0, 1e6], [-3.0, 0, 0, 0]], [1.0, 0, 0, 0]),
        ([[0.0, 0, 0, 0]], [1.0, 0, 0, 0]),  # nobody went anywhere
        ([[-1.0, 0, 0, 0], [0.0, 1, 0, 0]], [1.0, 0, 0, 0]),  # nobody goes that way
        ([[1.0, 0, 0, 0]], [0.0, 0, 0, 0]),  # the server has no way
        ([[1e-30, 0, 0, 1e-30], [1e30, 1e30, 0, 0]], [1e-3, 0, 0, 1e-3]),
    ],
)
def test_the_trusted_mean_is_that_of_the_paper(
    updates: list[list[float]], server: list[float]
) -> None:
    found, shares = trusted_mean(*(torch.tensor(x, dtype=torch.float64) for x in (updates, server)))
    assert found.tolist() == pytest.approx(_expected(updates, server), rel=1e-12, abs=1e-300)
    assert float(shares.sum()) == pytest.approx(1.0 if any(found.tolist()) else 0.0)


class _Model(nn.Module):
    """Trained, tied and frozen parameters, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))
        self.b = self.a
        self.c = nn.Parameter(torch.zeros(2))
        self.fixed = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("seen", torch.full((1,), 3.0))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


class _Root:
    """Goes as it is told."""

    def __init__(self, *ways: Sequence[float]) -> None:
        self._ways = list(ways)

    def train(self, weights: Weights, _: Instruction, state: Weights) -> tuple[Weights, Weights]:
        return _sent(weights, self._ways.pop(0)), state


def _sent(start: Weights, way: Sequence[float], seen: float = 0.0, fixed: float = 0.0) -> Weights:
    a, c = start["a"] + torch.tensor(way[:2]), start["c"] + torch.tensor(way[2:])
    beside = {"seen": torch.tensor([seen]), "count": torch.tensor(int(seen))}
    return {"a": a, "b": a, "c": c, "fixed": start["fixed"] + fixed, **beside}


def _after(root: _Root, each: Sequence[Weights], *settings: str) -> tuple[Any, dict[str, Tensor]]:
    strategy: Any = build_strategy(
        compose("federated", _TRUST, *settings), ModelFacts.of(_Model(), 100, len(each))
    )
    strategy.root = root
    grid = CohortGrid(None, reduce=False)  # type: ignore[arg-type]  # only its node ids are asked
    grid.offer(range(len(each)))
    start = to_record(_Model().state_dict())
    replies = []
    for message in strategy.configure_train(1, start, ConfigRecord(), grid):
        client = message.metadata.dst_node_id
        update = Update((client,), each[client], 1, 0.0, 1, 1, 1)
        replies.append(train_reply(update, stamp(message)))
    arrays, _ = strategy.aggregate_train(1, replies)
    return strategy, read_arrays(arrays)


_START = _Model().state_dict()


def test_a_round_moves_trained_weights_once_and_leaves_frozen_ones_alone() -> None:
    ways, server = [[1.0, 1, 0, 0], [0.0, 0, 8, 0], [-1.0, 0, 0, 0]], [1.0, 0, 1, 0]
    each = [_sent(_START, way, seen, 5.0) for way, seen in zip(ways, (1.0, 2.0, 9.0), strict=True)]
    strategy, found = _after(_Root(server), each)
    expected = _expected(ways, server)
    assert found["a"].tolist() == pytest.approx(expected[:2])
    assert torch.equal(found["a"], found["b"])
    assert found["c"].tolist() == pytest.approx(expected[2:])
    assert found["fixed"].tolist() == [0.0]
    # Trusted by 0.5, 0.71 and 0: the second has more than half of it, and the buffers are its.
    assert (float(found["seen"]), int(found["count"])) == (2.0, 2)
    assert strategy.numbers == {"trusted": 2.0}


@pytest.mark.parametrize(
    ("way", "words"),
    [([1.0, 0, 0, 0], "no client goes the server's way"), ([0.0] * 4, "own update is 0")],
)
def test_where_nobody_is_trusted_the_model_stays_and_the_log_says_so(
    way: list[float], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy, found = _after(_Root(way), [_sent(_START, [-1.0, 2, 3, 4], 7.0, 1.0)])
    for name, value in _START.items():
        assert torch.equal(found[name], value)
    assert words in caplog.text
    assert strategy.numbers == {"trusted": 0.0}


def test_a_server_whose_own_update_is_not_finite_ends_the_run_by_name() -> None:
    with pytest.raises(RunFailedError, match=r"round 1: .*root_examples.*not finite.*optimizer.lr"):
        _after(_Root([float("nan"), 0, 0, 0]), [_sent(_START, [1.0, 0, 0, 0])])


def test_an_update_that_is_not_finite_is_trusted_by_nobody() -> None:
    honest, bad = _sent(_START, [1.0, 2, 3, 4]), _sent(_START, [float("inf"), 0, 0, 0])
    _, alone = _after(_Root([1.0, 0, 0, 0]), [honest])
    _, found = _after(_Root([1.0, 0, 0, 0]), [bad, honest])
    assert all(torch.equal(found[name], alone[name]) for name in alone)


def test_root_examples_are_a_share_of_each_label_that_no_client_has() -> None:
    run = compose("federated", _TRUST, f"{_SIZE}=57", "seed=4")
    dataset = load(run.data, run.seed)
    traits = Traits.of(dataset.train)
    root, parts = root_examples(run, traits), divide(run, dataset)
    assert sorted([*root, *parts.indices]) == list(range(traits.examples))
    assert traits.labels is not None
    shares = np.bincount(traits.labels) * 57 / traits.examples
    assert (np.abs(np.bincount(traits.labels[root]) - shares) < 1).all()
    assert root.tolist() == root_examples(run, traits).tolist()
    other = compose("federated", _TRUST, f"{_SIZE}=57", "seed=5")
    assert root.tolist() != root_examples(other, traits).tolist()
    plain = compose("federated", "seed=4")
    assert len(root_examples(plain, traits)) == 0
    assert len(divide(plain, dataset).indices) == traits.examples


@pytest.mark.parametrize("size", [1, 3, 4, 11, 99])
def test_rare_labels_have_one_root_example_if_there_are_as_many(size: int) -> None:
    labels = np.array([0] * 90 + [1] * 7 + [2] * 2 + [3])
    run = compose("federated", _TRUST, f"{_SIZE}={size}")
    counts = np.bincount(labels[root_examples(run, Traits(100, labels))], minlength=4)
    assert counts.sum() == size
    assert counts[0] >= size * 0.9 - 3
    assert (counts >= 1).all() if size >= 4 else counts.max() <= 3


def test_numbers_to_be_predicted_are_drawn_by_tenths() -> None:
    run = compose("federated", _TRUST, f"{_SIZE}=20")
    targets = np.random.default_rng(0).normal(size=200)
    drawn = np.sort(targets)[:: 200 // 10]
    tenths = np.searchsorted(
        drawn, targets[root_examples(run, Traits(200, None, targets))], "right"
    )
    assert np.bincount(tenths).tolist()[1:] == [2] * 10


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((f"{_SIZE}=0",), (f"{_SIZE}=0", "between 1 and")),
        ((f"{_SIZE}=5000",), (f"{_SIZE}=5000", "training examples")),
        (
            ("experiment=heart", "data.validation_fraction=0.5", f"{_SIZE}=366"),
            (f"{_SIZE}=366", "which is a client", "Lower it"),
        ),
        (
            ("data=movielens", "federated/partition=natural", "model=matrix_factorization"),
            ("model=matrix_factorization", "keeps weights for each client", "geometric_median"),
        ),
    ],
)
def test_root_examples_that_cannot_be_are_refused_before_work(
    settings: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_components(compose("federated", *settings, _TRUST))
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def test_root_examples_are_scaled_by_themselves_where_clients_are() -> None:
    run = compose("federated", _TRUST, "data.fit=per_client", f"{_SIZE}=60")
    dataset = load(run.data, run.seed)
    rows = torch.from_numpy(root_examples(run, Traits.of(dataset.train)))
    images = prepared_for(divide(run, dataset), dataset).take(rows)["image"]
    assert float(images.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(images.std(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_fltrust_without_a_root_says_what_it_needs() -> None:
    strategy = build_strategy(compose("federated", _TRUST), ModelFacts.of(_Model(), 100, 1))
    assert isinstance(strategy, FLTrust)
    with pytest.raises(RuntimeError, match="needs its root"):
        strategy.center(torch.zeros(1, 4).double())
