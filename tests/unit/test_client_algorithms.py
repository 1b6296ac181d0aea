"""What client algorithms add to gradients: alone, in a stack, and of those still at work."""

from __future__ import annotations

import torch

from federated.algorithms import ControlVariates, FedProx, gradient_term, proximal
from federated.algorithms.control_variates import STATE


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


def test_terms_add_up() -> None:
    start = {"w": torch.zeros(2)}
    algorithms = (*proximal(2.0), ControlVariates({"w": torch.tensor([1.0, -1.0])}))
    term = gradient_term(algorithms, start, {})
    assert term is not None
    assert term("w", torch.tensor([1.0, 1.0])).tolist() == [3.0, 1.0]
    assert term("w", torch.tensor([1.0, 1.0])).tolist() == [3.0, 1.0], "a term was changed"


def test_nothing_is_added_without_an_algorithm() -> None:
    assert gradient_term(proximal(0.0), {"w": torch.zeros(2)}, {}) is None
