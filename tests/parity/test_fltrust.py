"""A run of FLTrust: as computed by hand, and the same wherever clients are trained, and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from federated.components import build_components
from federated.job import run_job
from tests.federated_runs import SMALL, assert_same_end
from tests.support import compose, events_of, weights_of

pytestmark = pytest.mark.usefixtures("no_report")

_TRUST = (
    *SMALL,
    *("federated/strategy=fltrust", "federated.strategy.root_examples=40"),
    *("federated.client_momentum=0.5", "federated.batch_size=null", "optimizer.lr=0.1"),
    *("federated/attack=scaling", "federated.attack.attackers=3", "federated.attack.factor=-9"),
    *("federated.checkpoint_every=1", "seed=3"),
)


def _run(directory: Path, *more: str) -> Path:
    run_job(compose("federated", *_TRUST, *more), directory)
    return directory


def test_a_run_is_what_the_paper_says_in_float64(tmp_path: Path) -> None:
    """Each client and the server go one step along the gradient of all their examples."""
    found = weights_of(_run(tmp_path / "run"))
    parts = build_components(compose("federated", *_TRUST))
    context, momentum = parts.context, {}
    assert parts.attack is not None
    weights = {name: value.double() for name, value in context.global_weights.items()}
    for _ in range(3):
        ways = {}
        for client in [-1, *range(5)]:
            rows = parts.root if client < 0 else context.population.train_indices(client)
            way = -0.1 * _gradient(weights, context.train.take(torch.from_numpy(rows)))
            momentum[client] = 0.5 * way + 0.5 * momentum.get(client, torch.zeros_like(way))
            ways[client] = momentum[client] * (-9 if client in parts.attack.attackers else 1)
        server = ways.pop(-1)
        trust = {c: max(0.0, float(w @ server / w.norm() / server.norm())) for c, w in ways.items()}
        update = sum(trust[c] * server.norm() / w.norm() * w for c, w in ways.items())
        update = update / sum(trust.values())
        for name, part in zip(weights, _split(update, weights), strict=True):
            weights[name] = weights[name] + part
    for name, value in weights.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)
    assert any(found[n].double().sub(context.global_weights[n]).abs().max() > 0.01 for n in found)


def _gradient(weights: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    leaves = [value.clone().requires_grad_() for value in weights.values()]
    hidden = functional.linear(batch["image"].double().flatten(1), leaves[0], leaves[1]).relu()
    logits = functional.linear(hidden, leaves[2], leaves[3])
    functional.cross_entropy(logits, batch["label"]).backward()
    return torch.cat([leaf.grad.reshape(-1) for leaf in leaves if leaf.grad is not None])


def _split(update: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    parts = torch.split(update, [value.numel() for value in weights.values()])
    return [part.view(own.shape) for part, own in zip(parts, weights.values(), strict=True)]


def test_it_goes_on_as_if_it_had_not_been_cut(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    _run(tmp_path / "parts", "federated.rounds=1")
    parts = _run(tmp_path / "parts", "resume=true")
    assert_same_end(whole, parts)
    told = [event["train/trusted"] for event in events_of(whole, "train")]
    assert len(told) == 3
    assert max(told) <= 2  # three of five attack


def test_stacks_of_clients_give_what_clients_one_by_one_do(tmp_path: Path) -> None:
    one = weights_of(_run(tmp_path / "one"))
    stacked = weights_of(_run(tmp_path / "stacked", "federated.client_training=batched"))
    for name, value in one.items():
        torch.testing.assert_close(value, stacked[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_it_is_the_same_on_ray_workers(tmp_path: Path) -> None:
    here = _run(tmp_path / "here", "federated.batch_size=7")
    on_ray = ("federated.pool=ray", "federated.workers=2", "federated.batch_size=7")
    assert_same_end(here, _run(tmp_path / "there", *on_ray))
