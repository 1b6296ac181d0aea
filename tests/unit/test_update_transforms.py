"""Transforms of clients' updates, before these are added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from federated.aggregation import (
    ClipNorm,
    Reduction,
    UpdateContext,
    UpdateTransform,
    mean_of,
    transforms_of,
)
from federated.engine.client_updates import ClientUpdates
from federated.updates import Instruction, Stack
from heliotrope.config import FederatedConfig, OptimizerConfig
from tests.support import fresh_seed


class _Odd(nn.Module):
    """Weights in several types, one under two names, one that is not trained, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.first.weight
        self.precise = nn.Parameter(torch.randn(2, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("count", torch.tensor(3))


def _stack(arrays: Mapping[str, Tensor]) -> Stack:
    count = len(next(iter(arrays.values())))
    ones = (1,) * count
    return Stack(tuple(range(count)), arrays, ones, (0.5,) * count, ones, ones, ones)


def _transformed(
    transforms: Sequence[UpdateTransform],
    model: nn.Module,
    stack: Stack,
    weights: Mapping[str, Tensor],
    *,
    rounded: bool,
) -> Stack:
    updates = ClientUpdates(model, OptimizerConfig("sgd"), 5, transforms)
    return updates(stack, weights, Instruction(3), rounded=rounded)


def _trained(weights: Mapping[str, Tensor], lengths: list[float]) -> Stack:
    """A stack whose clients went as far as `lengths` in all parameters together."""
    parameters = ["first.weight", "first.bias", "precise"]
    steps = {n: torch.randn(len(lengths), *weights[n].shape).double() for n in parameters}
    squares = torch.stack([step.flatten(1).square().sum(1) for step in steps.values()])
    factors = torch.tensor(lengths) / squares.sum(0).sqrt()
    arrays = {}
    for name, start in weights.items():
        of = "first.weight" if name == "tied.weight" else name
        step = torch.full((len(lengths), *start.shape), 7.0)
        if of in steps:
            step = steps[of] * factors.view(-1, *[1] * start.dim())
        arrays[name] = (start + step).to(start.dtype)
    return _stack(arrays)


def _added(found: Stack, row: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return how far one client went, float64, as it is added up."""
    reduction = Reduction(weights, 5)
    others = [other for other in range(len(found.clients)) if other != row]
    assert reduction.add(found.without(others)) == []
    part = reduction.partial()
    assert part is not None
    return mean_of([part], weights).differences


@pytest.mark.parametrize("rounded", [False, True])
def test_clipping_scales_long_updates_over_all_parameters_and_nothing_else(
    *, rounded: bool
) -> None:
    torch.manual_seed(fresh_seed())
    model = _Odd()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    lengths = [0.5, 2.0, 8.0, 0.0]
    stack = _trained(weights, lengths)
    before = {name: value.clone() for name, value in stack.arrays.items()}
    found = _transformed([ClipNorm(2.0)], model, stack, weights, rounded=rounded)
    assert found.clients == stack.clients
    for row, length in enumerate(lengths):
        ways = _added(found, row, weights)
        for name, value in before.items():
            start = weights[name].double()
            clipped = name not in ("frozen", "mean", "count")
            step = value[row].double() - start
            step = step * min(1.0, 2.0 / max(length, 1e-9)) if clipped else step
            torch.testing.assert_close(ways[name], step, rtol=1e-5, atol=1e-6)
    for name, value in before.items():
        assert torch.equal(stack.arrays[name], value), "what was given has changed"
        assert found.arrays[name].dtype == weights[name].dtype


def test_a_clipped_update_is_not_longer_than_was_asked_for() -> None:
    torch.manual_seed(fresh_seed())
    model = nn.Linear(40, 30)
    weights = dict(model.state_dict())
    arrays = {name: torch.randn(5, *value.shape) * 9.0 for name, value in weights.items()}
    found = _transformed([ClipNorm(0.01)], model, _stack(arrays), weights, rounded=False)
    for row in range(5):
        ways = _added(found, row, weights)
        length = float(torch.cat([value.flatten() for value in ways.values()]).norm())
        assert length == pytest.approx(0.01, rel=1e-12)


def test_clipping_alone_is_the_first_of_a_longer_chain() -> None:
    torch.manual_seed(fresh_seed())
    model = _Odd()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    stack = _trained(weights, [0.5, 2.0, 8.0])
    alone, chain = (
        _transformed([ClipNorm(1.5), *more], model, stack, weights, rounded=False)
        for more in ((), (ClipNorm(9.0),))
    )
    assert alone.scaling is not None
    assert chain.scaling is None
    for row in range(3):
        one, other = _added(alone, row, weights), _added(chain, row, weights)
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_left_out_as_ever(bad: float) -> None:
    model = nn.Linear(2, 1)
    weights = dict(model.state_dict())
    arrays = {name: value.expand(3, *value.shape).clone() + 1 for name, value in weights.items()}
    arrays["bias"][1] = bad
    found = _transformed([ClipNorm(0.5)], model, _stack(arrays), weights, rounded=False)
    reduction = Reduction(weights, 3)
    (failure,) = reduction.add(found)
    assert failure.client == 1
    part = reduction.partial()
    assert part is not None
    assert part.clients == (0, 2)


def test_an_update_of_another_shape_is_left_to_be_rejected() -> None:
    model = nn.Linear(2, 1)
    weights = dict(model.state_dict())
    stack = _stack({"weight": torch.ones(2, 1, 3), "bias": torch.ones(2, 1)})
    found = _transformed([ClipNorm(0.5)], model, stack, weights, rounded=True)
    assert [f.client for f in Reduction(weights, 2).add(found)] == [0, 1]


def test_transforms_are_applied_in_their_order_and_told_whose_updates_they_are() -> None:
    class Doubled:
        def apply(
            self, updates: Mapping[str, Tensor], context: UpdateContext
        ) -> Mapping[str, Tensor]:
            assert context == UpdateContext(run_seed=5, server_round=3, clients=(0,))
            return {name: 2.0 * update for name, update in updates.items()}

    model = nn.Linear(1, 1, bias=False)
    weights = {"weight": torch.zeros(1, 1)}
    stack = _stack({"weight": torch.full((1, 1, 1), 3.0)})
    for chain, expected in (([ClipNorm(2.0), Doubled()], 4.0), ([Doubled(), ClipNorm(2.0)], 2.0)):
        found = _transformed(chain, model, stack, weights, rounded=True)
        assert found.arrays["weight"].item() == expected


def test_without_transforms_a_stack_stays_as_it_is() -> None:
    assert transforms_of(FederatedConfig()) == ()
    stack = _stack({"weight": torch.ones(1, 2)})
    assert _transformed((), nn.Linear(2, 1), stack, {}, rounded=True) is stack
