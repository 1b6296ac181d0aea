"""A gradient gives its example away, exactly where the first layer is dense; noise ends it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from heliotrope.audit.inversion import inverted, signal_to_noise, similarity, why_not_inverted
from heliotrope.config import chosen
from heliotrope.data import Batch, load
from heliotrope.models import build
from heliotrope.tasks import task_of
from tests.support import classification, compose


def example(run_seed: int, shape: tuple[int, ...] = (1, 8, 8)) -> Batch:
    generator = torch.Generator().manual_seed(run_seed)
    image = torch.rand(1, *shape, generator=generator)
    return {"image": image, "label": torch.randint(0, 10, (1,), generator=generator)}


def ten(shape: tuple[int, ...] = (1, 8, 8)) -> classification:  # type: ignore[valid-type]
    return classification("small", shape, tuple("abcdefghij"))


@pytest.mark.parametrize("seed", range(3))
def test_a_dense_first_layer_gives_the_example_away_until_noise_is_added(seed: int) -> None:
    task = ten()
    model = build(chosen("model", "mlp"), task, seed)
    found = inverted(model, task, example(seed), seed, clip=1.0, deviation=1.0)
    assert found.method == "exact"
    assert found.plain.psnr > 80
    assert found.plain.ssim == pytest.approx(1, abs=1e-4)
    assert found.protected is not None
    assert found.protected.psnr < 15
    assert found.protected.ssim is not None
    assert found.protected.ssim < 0.5
    clipped = inverted(model, task, example(seed), seed, clip=0.01)
    assert clipped.protected is not None
    assert clipped.protected.psnr > 80, "clipping alone hides nothing"


def test_other_models_are_inverted_by_matching() -> None:
    torch.manual_seed(0)
    task = ten()
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(384, 10)
    )
    found = inverted(model, task, example(0), 0, clip=1.0, deviation=0.1)
    assert found.method == "matching"
    assert found.plain.psnr > 30
    assert found.protected is not None
    assert found.protected.psnr < 15
    assert all(p.grad is None for p in model.parameters())


def test_a_dense_layer_without_bias_or_frozen_gives_nothing_away_exactly() -> None:
    torch.manual_seed(0)
    task = ten()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    assert inverted(plain, task, example(0), 0).method == "matching"
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    for parameter in frozen[1].parameters():
        parameter.requires_grad_(False)
    found = inverted(frozen, task, example(0), 0)
    assert found.method == "matching"
    assert found.protected is None


def test_a_gradient_of_zero_is_no_example() -> None:
    task = ten()
    dead = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    with torch.no_grad():
        dead[1].bias.fill_(-1e3)
    found = inverted(dead, task, example(0), 0)
    assert math.isfinite(found.plain.psnr)
    assert not found.plain.values.any()


def test_tables_are_recovered_and_words_are_not() -> None:
    run = compose("distributed", "experiment=spam")
    assert why_not_inverted(task_of(load(run.data, 0), run)) is not None
    run = compose("distributed", "experiment=diabetes", "model=mlp")
    data = load(run.data, 0)
    task = task_of(data, run)
    assert why_not_inverted(task) is None
    one = data.test.take(torch.tensor([0]))
    found = inverted(build(run.model, task, 0), task, one, 0)
    assert found.plain.psnr > 60
    assert found.plain.ssim is None


def test_measures_of_likeness() -> None:
    picture = example(1)["image"][0]
    assert signal_to_noise(picture, picture) == math.inf
    assert similarity(picture, picture) == pytest.approx(1)
    span = float(picture.max() - picture.min())
    assert signal_to_noise(picture, picture + 0.1 * span) == pytest.approx(20)
    assert similarity(picture, 1 - picture) < 0
    assert similarity(picture[:, :3, :3], picture[:, :3, :3]) == pytest.approx(1)
    assert signal_to_noise(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)) == pytest.approx(0)
