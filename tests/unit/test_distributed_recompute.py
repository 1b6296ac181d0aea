"""Activation checkpointing: the same gradients from fewer kept activations."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from distributed.recompute import recompute
from heliotrope.config import MlpConfig
from heliotrope.errors import ConfigError
from heliotrope.models import build
from heliotrope.models.dropout import SeededDropout
from heliotrope.models.seeded import reseed
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
    cfg = MlpConfig("mlp", hidden=[8] * 12, dropout=0.3)
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


def test_a_model_without_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"distributed\.activation_checkpointing=true.*Bilinear"):
        recompute(nn.Bilinear(2, 2, 2))
