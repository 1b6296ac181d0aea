"""Protected local steps: a plain loop in float64, whatever else a client does in them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from federated.algorithms import ControlVariates, FedProx
from federated.algorithms.control_variates import STATE
from federated.client_state import ClientStates
from federated.engine.context import TrainingContext
from federated.engine.sequential import train_client
from federated.updates import Instruction, StepNoise
from heliotrope.models.layers.seeded import reseed
from heliotrope.seeding import numpy_generator
from tests.parity.cohorts import context_of, federated_run, weights_of
from tests.support import fresh_seed

_CLIP, _STAMP = 0.4, "as now"
PRIVATE = (
    "data.fit=none",
    "federated/privacy=record",
    f"federated.privacy.clip={_CLIP}",
    "federated.privacy.noise_multiplier=1",
)


def _noise(clients: TrainingContext, multiplier: float) -> StepNoise:
    return StepNoise(dict.fromkeys(range(len(clients.population)), multiplier), _STAMP)


def by_hand(
    clients: TrainingContext, order: Instruction, client: int, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Train as a reader of the papers would write it, in float64."""
    model = copy.deepcopy(clients.model)
    model.load_state_dict(weights)
    model = model.double().train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    cfg = clients.optimizer
    optimizer = torch.optim.SGD(
        model.parameters(), lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay
    )
    assert order.noise is not None
    deviation = order.noise.multipliers[client] * _CLIP
    (examples,) = clients.population.train_sizes([client])
    expected = min(clients.federated.batch_size or examples, examples)
    plan = clients.plan(order.server_round, [client], stream=(order.noise.stamp,))
    for rows, step_seed in plan.batches():
        batch = clients.train.take(rows)
        totals = {name: torch.zeros_like(p) for name, p in trained.items()}
        for number in range(len(rows)):
            reseed(model, step_seed, number)
            image = batch["image"][number : number + 1].double()
            loss = functional.cross_entropy(model(image), batch["label"][number : number + 1])
            found = torch.autograd.grad(loss, list(trained.values()))
            norm = float(torch.cat([g.flatten() for g in found]).norm())
            for name, gradient in zip(trained, found, strict=True):
                totals[name] += gradient * min(1.0, _CLIP / norm)
        generator = numpy_generator(step_seed, "privacy", order.noise.stamp, repr(deviation))
        count = sum(p.numel() for p in trained.values())
        drawn = torch.from_numpy(generator.standard_normal(count, dtype=np.float32))
        noise = torch.split(drawn.double() * deviation, [p.numel() for p in trained.values()])
        for (name, p), part in zip(trained.items(), noise, strict=True):
            p.grad = (totals[name] + part.view_as(p)) / expected
            p.grad += clients.loss.l2 * p.detach() + clients.loss.l1 * p.detach().sign()
            for algorithm in order.algorithms:
                if isinstance(algorithm, FedProx):
                    p.grad += algorithm.mu * (p.detach() - start[name])
                elif isinstance(algorithm, ControlVariates):
                    own = order.states_of(client)[f"{STATE}{name}"]
                    p.grad += algorithm.server[name] - own
        if cfg.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_norm)
        optimizer.step()
    return model.state_dict()


def _one(clients: TrainingContext, order: Instruction, client: int) -> dict[str, Tensor]:
    stack = train_client(clients, weights_of(clients), order, client)
    return {name: value[0] for name, value in stack.arrays.items()}


def assert_near(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=2e-6, msg=name)


_SETTINGS = [
    "model.hidden=[12]",
    "model.hidden=[6] model.dropout=0.4 optimizer.momentum=0.9 optimizer.weight_decay=0.01",
    "model.hidden=[6] loss.l2=0.02 loss.l1=0.001 optimizer.clip_norm=0.3 federated.local_epochs=2",
    "model=cnn model.channels=[4] model.kernel_size=3 model.hidden=[8] federated.batch_size=null",
    "model.hidden=[6] federated.batch_size=1000",
    "model.hidden=[6] federated.batch_size=1",
]


@pytest.mark.parametrize("settings", _SETTINGS)
def test_a_client_is_trained_as_a_plain_loop_in_float64(settings: str) -> None:
    clients, _ = context_of(federated_run(*PRIVATE, settings, f"seed={fresh_seed()}"))
    order = Instruction(2, noise=_noise(clients, 0.7))
    found = _one(clients, order, 3)
    assert_near(found, by_hand(clients, order, 3, weights_of(clients)))


def _states(clients: TrainingContext) -> ClientStates:
    generator = torch.Generator().manual_seed(fresh_seed())
    names = dict(clients.model.named_parameters())
    everyone = tuple(range(len(clients.population)))
    return ClientStates(
        everyone,
        {
            f"{STATE}{name}": torch.randn(len(everyone), *p.shape, generator=generator) * 0.1
            for name, p in names.items()
        },
    )


def test_terms_of_algorithms_join_after_the_noise() -> None:
    clients, _ = context_of(federated_run(*PRIVATE, "model.hidden=[6]"))
    for algorithm in (
        FedProx(0.3),
        ControlVariates({n: torch.full_like(p, 0.05) for n, p in weights_of(clients).items()}),
    ):
        order = Instruction(1, (algorithm,), noise=_noise(clients, 1.3), states=_states(clients))
        found = _one(clients, order, 2)
        assert_near(found, by_hand(clients, order, 2, weights_of(clients)))
        without = _one(clients, Instruction(1, noise=_noise(clients, 1.3)), 2)
        assert any(not torch.equal(found[name], value) for name, value in without.items())
