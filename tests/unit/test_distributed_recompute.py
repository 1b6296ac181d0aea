"""Activation checkpointing: the same gradients from fewer kept activations."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from distributed.strategies.recompute import recompute
from heliotrope.config import chosen
from heliotrope.errors import ConfigError
from heliotrope.models import build
from heliotrope.models.layers.dropout import SeededDropout
from heliotrope.models.layers.seeded import reseed
from tests.support import assert_same_tensors, fresh_seed, small_task


class _Blocks(nn.Module):
    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(n, n), nn.GELU(), SeededDropout(0.3)) for n in sizes]
        self.blocks = nn.ModuleList(layers)

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = block(inputs)
        return inputs


def _deep() -> nn.Module:
    cfg = chosen("model", "mlp", hidden=[8] * 12, dropout=0.3)
    return build(cfg, small_task(4, (8,)), run_seed=3)


def _blocks() -> nn.Module:
    return _Blocks([8] * 12)


def _passed(model: nn.Module, inputs: Tensor) -> tuple[dict[str, Tensor], int]:
    """Return the gradients of a pass and the bytes that it kept for going back."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    reseed(model, 11)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(inputs).square().sum()
    before_backward = kept
    output.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, before_backward


@pytest.mark.parametrize("make", [_deep, _blocks])
def test_the_gradients_are_the_same_and_less_is_kept(make: type[nn.Module]) -> None:
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(fresh_seed()))
    plain, frugal = make(), make()
    frugal.load_state_dict(plain.state_dict())
    recompute(frugal)
    assert frugal.state_dict().keys() == plain.state_dict().keys()
    expected, kept = _passed(plain, inputs)
    gradients, kept_less = _passed(frugal, inputs)
    assert_same_tensors(gradients, expected)
    assert kept_less < kept / 2


@pytest.mark.parametrize("blocks", [False, True])
def test_batch_statistics_are_of_one_pass_a_step(blocks: bool) -> None:
    def make() -> nn.Module:
        torch.manual_seed(5)
        layers = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh()) for _ in range(6)]
        if not blocks:
            return nn.Sequential(*(part for layer in layers for part in layer))
        model = _Blocks([])
        model.blocks = nn.ModuleList(layers)
        return model

    inputs = torch.randn(32, 8, generator=torch.Generator().manual_seed(fresh_seed()))
    with torch.random.fork_rng():
        plain, frugal = make(), make()
    recompute(frugal)
    for _ in range(2):
        expected, _ = _passed(plain, inputs)
        gradients, _ = _passed(frugal, inputs)
    assert_same_tensors(gradients, expected)
    assert_same_tensors(dict(frugal.state_dict()), dict(plain.state_dict()))


def test_a_model_without_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"distributed\.activation_checkpointing=true.*Bilinear"):
        recompute(nn.Bilinear(2, 2, 2))
