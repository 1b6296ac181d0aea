"""What a client's protected step releases: how far one example moves it, and its noise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from federated.engine.context import TrainingContext
from federated.engine.sequential import train_client
from federated.population import Population
from federated.updates import Instruction, StepNoise
from heliotrope.data import Partition
from heliotrope.models.usable import why_not_one
from tests.parity.cohorts import context_of, federated_run, weights_of
from tests.parity.test_record_steps import PRIVATE, assert_near, by_hand
from tests.support import fresh_seed, with_images

_CLIP = 0.4
_ONE_STEP = ("optimizer.lr=1", "model.hidden=[16]", "federated.batch_size=null")


def _sum(clients: TrainingContext, client: int, noise: float, server_round: int = 1) -> Tensor:
    """Return the sum that a client's one step of full batch released, [D] in float64."""
    weights = weights_of(clients)
    order = Instruction(server_round, noise=StepNoise({client: noise}, "now"))
    stack = train_client(clients, weights, order, client)
    assert stack.steps == (1,)
    (examples,) = clients.population.train_sizes([client])
    moved = [(weights[n].double() - v[0].double()).flatten() for n, v in stack.arrays.items()]
    return torch.cat(moved) * examples


def _neighbours(odd: float, settings: tuple[str, ...] = ()) -> TrainingContext:
    """Return two clients: the second holds what the first does, and an odd example."""
    clients, _ = context_of(federated_run(*PRIVATE, *_ONE_STEP, *settings))

    def spoil(images: Tensor) -> Tensor:
        images = images.clone()
        images[40] = images[40] * 0 + odd
        return images

    rows = np.concatenate([np.arange(40), np.arange(41)])
    population = Population(Partition(rows, np.array([0, 40, 81])), 0.0, 7)
    return replace(clients, train=with_images(clients.train, spoil), population=population)


@pytest.mark.parametrize("odd", [0.0, 1.0, -1e4, 1e20, 3e38, math.inf, math.nan])
@pytest.mark.parametrize("model", ["model=mlp", "model=cnn model.channels=[3] model.kernel_size=3"])
def test_no_example_moves_a_sum_by_more_than_the_clip(odd: float, model: str) -> None:
    clients = _neighbours(odd, tuple(model.split()))
    moved = _sum(clients, 1, 0.0) - _sum(clients, 0, 0.0)
    rounding = 1e-5 * 40  # of float32 weights, times the examples
    assert float(moved.norm()) <= _CLIP + rounding
    if odd == -1e4:
        assert float(moved.norm()) == pytest.approx(_CLIP, abs=rounding)  # it is drawn, and clipped
    if not math.isfinite(odd):
        assert float(moved.norm()) <= rounding


def test_the_noise_has_the_deviation_that_is_accounted_for_once_a_step() -> None:
    clients, _ = context_of(
        federated_run(*PRIVATE, *_ONE_STEP, "model.hidden=[64]", f"seed={fresh_seed()}")
    )
    streams = [(client, number) for client in range(4) for number in (1, 2)]
    found = [_sum(clients, c, 3.0, n) - _sum(clients, c, 0.0, n) for c, n in streams]
    noise = torch.stack(found)  # [8, D]
    count = noise.numel()
    deviation = 3.0 * _CLIP
    assert abs(float(noise.mean())) < 6 * deviation / math.sqrt(count)
    assert float(noise.var()) == pytest.approx(deviation**2, rel=6 * math.sqrt(2 / count) + 1e-4)
    beyond = float((noise.abs() > 2 * deviation).double().mean())
    assert beyond == pytest.approx(0.0455, abs=6 * math.sqrt(0.0455 / count))
    alike = torch.corrcoef(noise) - torch.eye(len(streams))
    assert float(alike.abs().max()) < 6 / math.sqrt(noise.shape[1])  # other clients, other rounds
    client, number = streams[3]
    again = _sum(clients, client, 3.0, number) - _sum(clients, client, 0.0, number)
    assert torch.equal(again, noise[3])


def test_a_step_nobody_is_drawn_for_is_a_step_of_noise() -> None:
    clients, _ = context_of(
        federated_run(*PRIVATE, "optimizer.lr=1", "model.hidden=[64]", "federated.batch_size=1")
    )
    few = Population(Partition(np.arange(2), np.array([0, 2])), 0.0, 3)
    clients = replace(clients, population=few)
    plans = ((n, clients.plan(n, [0], stream=("now",))) for n in range(1, 99))
    number = next(n for n, plan in plans if set(plan.sizes.tolist()) == {0})
    weights = weights_of(clients)
    order = Instruction(number, noise=StepNoise({0: 2.0}, "now"))
    stack = train_client(clients, weights, order, 0)
    assert (stack.steps, stack.seen, stack.weights) == ((2,), (0,), (2,))
    moved = torch.cat([(v[0] - weights[n]).flatten() for n, v in stack.arrays.items()])
    deviation = 2.0 * _CLIP * math.sqrt(2)  # two steps, one expected example each
    assert float(moved.std()) == pytest.approx(deviation, rel=0.05)


def test_without_noise_nobody_is_trained() -> None:
    clients, _ = context_of(federated_run(*PRIVATE, *_ONE_STEP))
    with pytest.raises(ValueError, match="not told how much noise"):
        train_client(clients, weights_of(clients), Instruction(1), 0)


def test_clients_weigh_as_many_as_their_examples_whatever_these_weigh() -> None:
    clients, _ = context_of(federated_run(*PRIVATE, *_ONE_STEP))
    object.__setattr__(clients, "_alike", False)
    object.__setattr__(clients, "example_weights", torch.full((len(clients.train),), 7))
    sizes = clients.population.train_sizes([0, 3])
    assert clients.weights_of([0, 3]) == tuple(sizes)
    assert clients.total_weight == len(clients.train)


class _Adapted(nn.Module):
    """A frozen layer with a trained one of low rank beside it, and weights that are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.down, self.up = nn.Linear(64, 10), nn.Linear(64, 2), nn.Linear(2, 10)
        self.inner, self.again = nn.Linear(64, 64), nn.Linear(64, 64)
        self.again.weight = self.inner.weight
        self.frozen.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        flat = flat + self.again(self.inner(flat).tanh())
        outputs: Tensor = self.frozen(flat) + self.up(self.down(flat))
        return outputs


def test_frozen_and_tied_weights_are_trained_as_by_hand() -> None:
    clients, _ = context_of(federated_run(*PRIVATE, "optimizer.momentum=0.9"))
    torch.manual_seed(fresh_seed())
    clients = replace(clients, model=_Adapted())
    assert why_not_one(clients.model, clients.task) is None
    weights = {name: value.clone() for name, value in clients.model.state_dict().items()}
    order = Instruction(3, noise=StepNoise({2: 0.5}, "as now"))
    stack = train_client(clients, weights, order, 2)
    found = {name: value[0] for name, value in stack.arrays.items()}
    assert_near(found, by_hand(clients, order, 2, weights))
    assert torch.equal(found["frozen.weight"], weights["frozen.weight"])
    assert torch.equal(found["inner.weight"], found["again.weight"])
    assert not torch.equal(found["inner.weight"], weights["inner.weight"])
