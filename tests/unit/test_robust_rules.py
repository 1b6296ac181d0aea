"""Robust rules in float64: against byzfl's vectors, the papers' formulas, and in odd cases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from torch import Tensor, nn

from federated.flower.grid import CohortGrid
from federated.flower.messages import read_arrays, stamp, to_record, train_reply
from federated.strategies import ModelFacts, build_strategy
from federated.strategies.robust import weighted_median
from federated.strategies.robust_updates import geometric_median
from federated.updates import Update
from heliotrope.errors import RunFailedError
from tests.support import compose, fresh_seed

_ORACLE = json.loads((Path(__file__).parent / "byzfl_vectors.json").read_text())
_VECTORS = torch.tensor(_ORACLE["vectors"], dtype=torch.float64)
_CLIENTS = len(_VECTORS)


class _Model(nn.Module):
    """Two parameters, of 2 and 3 numbers, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(1, dtype=torch.float64))


def _strategy(name: str, *settings: str, model: nn.Module | None = None) -> Any:
    run = compose(
        "federated",
        f"federated/strategy={name}",
        f"federated.clients_per_round={_CLIENTS}",
        f"federated.partition.clients={_CLIENTS}",
        *settings,
    )
    return build_strategy(run, ModelFacts.of(model or _Model(), 1000, _CLIENTS))


def _aggregated(
    strategy: Any,
    start: Mapping[str, Tensor],
    each: Sequence[Mapping[str, Tensor]],
    number: int = 1,
) -> dict[str, Tensor]:
    """Return the weights after a round in which clients sent `each`."""
    grid = CohortGrid(None, reduce=False)  # type: ignore[arg-type]  # only its node ids are asked
    grid.offer(range(len(each)))
    messages = strategy.configure_train(number, to_record(start), ConfigRecord(), grid)
    replies = []
    for message in messages:
        client = message.metadata.dst_node_id
        update = Update((client,), each[client], 1, 0.0, 1, 1, 1)
        replies.append(train_reply(update, stamp(message)))
    arrays, _ = strategy.aggregate_train(number, replies)
    return read_arrays(arrays)


def _split(vector: Tensor, seen: float = 0.0) -> dict[str, Tensor]:
    return {"a": vector[:2], "b": vector[2:], "seen": vector.new_tensor([seen])}


def _rule(strategy: Any, vectors: Tensor, start: Tensor | None = None, number: int = 1) -> Tensor:
    """Return how far the server went for these updates, [D]."""
    begun = torch.zeros(5, dtype=torch.float64) if start is None else start
    each = [_split(begun + vector) for vector in vectors]
    found = _aggregated(strategy, _split(begun), each, number)
    return torch.cat([found["a"], found["b"]]) - begun


@pytest.mark.parametrize(
    ("name", "settings", "oracle"),
    [
        ("fedmedian", (), "median"),
        ("fedtrimmedavg", ("federated.strategy.beta=0.2",), "trimmed_mean"),
        ("geometric_median", (), "geometric_median"),
        (
            "centered_clipping",
            ("federated.strategy.tau=1.5", "federated.strategy.iterations=3"),
            "centered_clipping",
        ),
        ("norm_bounding", ("federated.strategy.bound=1.5",), "norm_bounding"),
    ],
)
def test_a_rule_gives_what_byzfl_gives(name: str, settings: tuple[str, ...], oracle: str) -> None:
    expected = torch.tensor(_ORACLE[oracle], dtype=torch.float64)
    found = _rule(_strategy(name, *settings), _VECTORS, torch.tensor([1.0, -2.0, 3, 0, 5]).double())
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_at_the_geometric_median_the_directions_to_all_points_cancel() -> None:
    shares = geometric_median(_VECTORS)
    ways = _VECTORS - shares @ _VECTORS
    directions = ways / ways.norm(dim=1, keepdim=True)
    assert float(directions.sum(dim=0).norm()) < 1e-8
    assert float(shares.sum()) == pytest.approx(1.0)


def test_a_majority_that_agrees_is_the_geometric_median_however_far_the_others() -> None:
    points = torch.ones(5, 3, dtype=torch.float64)
    points[3:] = torch.tensor([[1e12, 0.0, 0.0], [0.0, -1e12, 1.0]])
    assert (geometric_median(points) @ points).tolist() == pytest.approx([1.0] * 3)


def test_centred_clipping_begins_at_the_round_before_also_when_it_is_resumed() -> None:
    """By hand: v = 0, then mean of what is within 2 of it; then around that."""
    settings = ("federated.strategy.tau=2.0",)
    first = torch.zeros(2, 5, dtype=torch.float64)
    first[0, 0], first[1, 1] = 6.0, 1.0
    whole, resumed = (_strategy("centered_clipping", *settings) for _ in range(2))
    v = torch.tensor([1.0, 0.5, 0, 0, 0]).double()  # (2, 0) and (0, 1), in the mean
    torch.testing.assert_close(_rule(whole, first), v)
    resumed.load_state_dict(whole.state_dict())
    away = torch.zeros(2, 5, dtype=torch.float64)
    away[:, 0], away[:, 1] = 1.0, torch.tensor([4.5, 0.5])
    for strategy in (whole, resumed):  # 4 away is 2 away: the mean is 1 from v
        torch.testing.assert_close(_rule(strategy, away, number=2), v + torch.eye(5)[1].double())


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.b = self.a


def test_a_parameter_of_two_names_counts_once_in_a_norm() -> None:
    strategy = _strategy("norm_bounding", "federated.strategy.bound=5.0", model=_Tied())
    sent = {name: torch.tensor([3.0, 4.0]).double() for name in "ab"}
    found = _aggregated(strategy, {name: torch.zeros(2).double() for name in "ab"}, [sent])
    assert {name: value.tolist() for name, value in found.items()} == {"a": [3, 4], "b": [3, 4]}


def test_buffers_follow_the_majority_that_a_geometric_median_follows() -> None:
    agreed = [_split(torch.ones(5).double(), seen=2.0)] * 3
    far = [_split(torch.full((5,), 1e6).double(), seen=9.0)] * 2
    found = _aggregated(
        _strategy("geometric_median"), _split(torch.zeros(5).double()), agreed + far
    )
    assert float(found["seen"]) == pytest.approx(2.0)


_BAD = "federated.strategy.num_malicious_nodes=1"


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("krum", _BAD),
        ("multikrum", f"{_BAD} federated.strategy.num_nodes_to_select=5"),
        ("bulyan", _BAD),
        ("fedmedian", ""),
        ("fedtrimmedavg", "federated.strategy.beta=0.2"),
        ("geometric_median", ""),
        ("norm_bounding", ""),
        ("centered_clipping", ""),
    ],
)
@pytest.mark.parametrize("odd", [1e30, -1e30])
def test_a_client_who_is_like_others_in_all_but_buffers_does_not_lead_these_astray(
    name: str, setting: str, odd: float
) -> None:
    """The attacker sends the mean of the others: no rule is closer to anybody else."""
    honest = _VECTORS[:8]
    seen = [float(number) for number in range(8)]
    each = [_split(vector, own) for vector, own in zip(honest, seen, strict=True)]
    each.append(_split(honest.mean(dim=0), odd))
    found = _aggregated(_strategy(name, *setting.split()), _split(torch.zeros(5).double()), each)
    assert min(seen) <= float(found["seen"]) <= max(seen)


def test_a_median_by_shares_leaves_at_most_half_of_them_on_each_side() -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    for count in range(1, 9):
        stack = torch.randint(-3, 4, (count, 2, 0 if count == 4 else 3), generator=generator)
        stack, alike = stack.double(), torch.full((count,), 1 / count, dtype=torch.float64)
        expected = np.median(stack.numpy(), axis=0)
        np.testing.assert_allclose(weighted_median(stack, alike), expected)
        shares = torch.rand(count, generator=generator, dtype=torch.float64).softmax(dim=0)
        found = weighted_median(stack, shares)
        for less in (stack < found - 1e-9, stack > found + 1e-9):
            assert (torch.einsum("k,k...->...", shares, less.double()) <= 0.5 + 1e-6).all()
    middle = torch.tensor([0.1, 0.4, 0.0, 0.5], dtype=torch.float64)
    assert weighted_median(torch.tensor([5.0, 1.0, 3.0, 9.0]).double(), middle).item() == 7.0


@pytest.mark.parametrize("name", ["fedmedian", "geometric_median", "norm_bounding"])
def test_an_update_that_is_not_finite_is_left_out(name: str) -> None:
    honest = _VECTORS[:5]
    expected = _rule(_strategy(name), honest)
    bad = torch.full((1, 5), float("nan"), dtype=torch.float64)
    assert torch.equal(_rule(_strategy(name), torch.cat([bad, honest])), expected)


def test_buckets_are_means_of_other_random_clients_in_each_round() -> None:
    strategy = _strategy("fedmedian", "federated.bucket_size=3", "seed=5")
    whole = [_split(vector) for vector in _VECTORS]
    rounds = []
    for number in (1, 2, 1):
        means = strategy.bucketing.means(number, whole)
        rounds.append(torch.stack([torch.cat([mean["a"], mean["b"]]) for mean in means]))
        sizes = np.array([3, 3, 3, 2])[:, None]  # each client is in one bucket
        total = (rounds[-1] * torch.from_numpy(sizes)).sum(dim=0)
        torch.testing.assert_close(total, _VECTORS.sum(dim=0))
    assert torch.equal(rounds[0], rounds[2])
    assert not torch.equal(rounds[0], rounds[1])
    expected = rounds[0].sort(dim=0).values[1:3].mean(dim=0)
    torch.testing.assert_close(_rule(strategy, _VECTORS), expected)


def test_too_few_buckets_end_the_run() -> None:
    settings = ("federated.strategy.num_malicious_nodes=1", "federated.bucket_size=2")
    with pytest.raises(RunFailedError, match=r"needs the updates of 5 .* has 4 in buckets of 2"):
        _rule(_strategy("krum", *settings), _VECTORS[:8])
