"""An optimizer's state survives JSON and named tensors, and goes on bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from heliotrope.config import OptimizerConfig, chosen
from heliotrope.training import optimizer_state
from heliotrope.training.optimizers import build_optimizer
from tests.support import assert_same_tensors, fresh_seed, weights

_CONFIGS = [
    chosen("optimizer", "sgd", lr=0.1),
    chosen("optimizer", "sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    chosen("optimizer", "adam", lr=0.01, betas=(0.8, 0.95)),
    chosen("optimizer", "adamw", lr=0.01, weight_decay=0.1),
    chosen("optimizer", "adafactor", lr=0.01, weight_decay=0.1),
]


def _steps(model: nn.Module, optimizer: Optimizer, inputs: torch.Tensor) -> None:
    for batch in inputs:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("cfg", _CONFIGS, ids=lambda cfg: f"{cfg.name}-{cfg.weight_decay}")
@pytest.mark.parametrize("before", [0, 3])
def test_training_goes_on_as_if_never_saved(cfg: OptimizerConfig, before: int) -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    inputs = torch.randn(before + 4, 5, 3, generator=generator)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(cfg, model.parameters())
    _steps(model, optimizer, inputs[:before])

    tensors, rest = optimizer_state.flatten(optimizer)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    other = nn.Linear(3, 2)
    other.load_state_dict(weights(model))
    restored = build_optimizer(cfg, other.parameters())
    optimizer_state.restore(restored, tensors, json.loads(json.dumps(rest)))

    assert restored.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    _steps(model, optimizer, inputs[before:])
    _steps(other, restored, inputs[before:])
    assert_same_tensors(weights(model), weights(other))
