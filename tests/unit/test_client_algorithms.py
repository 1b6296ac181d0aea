"""What client algorithms add to gradients: alone, in a stack, and of those still at work."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from federated.aggregation import ClipNorm, Reduction, merged
from federated.algorithms import (
    ClientAlgorithm,
    ControlVariates,
    FedProx,
    Finished,
    GradientTerm,
    gradient_term,
    proximal,
)
from federated.algorithms.control_variates import CONTROL_CHANGE, STATE
from federated.engine.client_updates import ClientUpdates
from federated.updates import Instruction, Stack
from heliotrope.config import OptimizerConfig


def test_fedprox_adds_mu_times_the_way_from_where_a_client_began() -> None:
    start = {"w": torch.tensor([1.0, 2.0])}
    term = FedProx(0.5).start(start, {})
    assert term("w", torch.tensor([4.0, 2.0])).tolist() == [1.5, 0.0]
    stack = torch.tensor([[4.0, 2.0], [1.0, 0.0], [1.0, 2.0]])
    assert term("w", stack).tolist() == [[1.5, 0.0], [0.0, -1.0], [0.0, 0.0]]


def test_fedprox_knows_where_each_of_a_stack_began() -> None:
    start = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
    term = FedProx(1.0).start(start, {})
    at_work = torch.tensor([[1.0, 3.0], [4.0, 4.0]])  # the third client is done
    assert term("w", at_work).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert start["w"].tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def test_a_client_without_state_has_no_control_variate_of_its_own() -> None:
    algorithm = ControlVariates({"w": torch.tensor([1.0, 2.0], dtype=torch.float64)})
    start = {"w": torch.zeros(2)}
    assert algorithm.start(start, {})("w", torch.ones(2)).tolist() == [1.0, 2.0]
    own = {f"{STATE}w": torch.tensor([[0.5, 0.5], [0.0, 1.0]])}
    stacked = algorithm.start(start, own)
    assert stacked("w", torch.ones(2, 2)).tolist() == [[0.5, 1.5], [1.0, 1.0]]
    assert stacked("w", torch.ones(1, 2)).tolist() == [[0.5, 1.5]]


def test_personal_weights_have_no_control_variate() -> None:
    algorithm = ControlVariates({"w": torch.tensor([1.0])})
    term = algorithm.start({"w": torch.zeros(1), "user": torch.zeros(2, 3)}, {})
    assert (torch.ones(2, 3) + term("user", torch.ones(2, 3))).tolist() == [[1.0] * 3] * 2
    assert term("w", torch.ones(1)).tolist() == [1.0]


def test_a_new_control_variate_and_its_change_follow_from_how_far_a_client_went() -> None:
    """Option II: c_i+ = c_i - c - (y_i - x) / (K lr); who took no step keeps c_i."""
    algorithm = ControlVariates({"w": torch.tensor([1.0, 2.0])})
    own = {f"{STATE}w": torch.tensor([[0.5, 0.0], [3.0, 4.0]])}
    went = {"w": torch.tensor([[-0.6, 0.0], [0.0, 0.0]], dtype=torch.float64)}
    done = algorithm.finish(went, own, torch.tensor([2, 0]), learning_rate=0.1)
    assert done.state[f"{STATE}w"].tolist() == [[2.5, -2.0], [3.0, 4.0]]
    assert done.differences["w"] is went["w"]
    assert done.differences[f"{STATE}w"].tolist() == [[2.0, -2.0], [0.0, 0.0]]
    assert done.numbers[CONTROL_CHANGE].tolist() == [8**0.5, 0.0]


def test_control_variates_reach_another_process_whole() -> None:
    back = pickle.loads(pickle.dumps(ControlVariates({"w": torch.tensor([1.0, 2.0])})))  # noqa: S301
    assert back.server["w"].tolist() == [1.0, 2.0]


@dataclass(frozen=True)
class _Scaled(ClientAlgorithm):
    """Sends a part of the way, and tells how far the client has been asked to go."""

    name: str
    scale: float
    finishes = True

    def start(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> GradientTerm:
        return lambda _name, weight: torch.zeros_like(weight)

    def finish(
        self,
        differences: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        steps: Tensor,
        learning_rate: float,
    ) -> Finished:
        scaled = {name: self.scale * difference for name, difference in differences.items()}
        return Finished(scaled, {}, {self.name: differences["weight"].flatten(1).sum(dim=1)})


@pytest.mark.parametrize("rounded", [False, True])
def test_algorithms_finish_one_after_the_other_before_updates_are_clipped(*, rounded: bool) -> None:
    model = nn.Linear(1, 1)
    weights = {"weight": torch.tensor([[1.0]]), "bias": torch.tensor([0.0])}
    arrays = {"weight": torch.tensor([[[9.0]], [[2.0]]]), "bias": torch.zeros(2, 1)}
    stack = Stack((4, 7), arrays, (3, 5), (0.5, 0.5), *[(1, 1)] * 3)
    order = Instruction(1, (_Scaled("one", 0.5), _Scaled("two", 0.25)), equal_weights=True)
    finish = ClientUpdates(model, OptimizerConfig("sgd"), 5, [ClipNorm(0.5)])
    done = finish(stack, weights, order, rounded=rounded)
    assert done.numbers == {"one": (8.0, 1.0), "two": (4.0, 0.5)}
    assert done.arrays["weight"].flatten().tolist() == [1.5, 1.125]
    assert done.arrays["weight"].dtype == (torch.float32 if rounded else torch.float64)
    assert done.weights == (1, 1)
    assert done.rows()[1].numbers == {"one": 1.0, "two": 0.5}
    assert done.without([0]).numbers == {"one": (1.0,), "two": (0.5,)}
    reduction = Reduction(weights, 8)
    assert reduction.add(replace(done, weights=stack.weights)) == []
    whole = reduction.partial()
    assert whole is not None
    assert merged([whole, whole]).numbers == {"one": (24.0, 5.0) * 2, "two": (12.0, 2.5) * 2}


def test_terms_add_up() -> None:
    start = {"w": torch.zeros(2)}
    algorithms = (*proximal(2.0), ControlVariates({"w": torch.tensor([1.0, -1.0])}))
    term = gradient_term(algorithms, start, {})
    assert term is not None
    assert term("w", torch.tensor([1.0, 1.0])).tolist() == [3.0, 1.0]
    assert term("w", torch.tensor([1.0, 1.0])).tolist() == [3.0, 1.0], "a term was changed"


def test_nothing_is_added_without_an_algorithm() -> None:
    assert gradient_term(proximal(0.0), {"w": torch.zeros(2)}, {}) is None
