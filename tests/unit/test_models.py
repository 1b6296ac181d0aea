"""Models have the papers' sizes, fit their data or say why not, and draw from no shared state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from heliotrope.config import ModelConfig, chosen
from heliotrope.errors import ConfigError
from heliotrope.models import build, parameter_count
from heliotrope.models.layers.augment import SeededAugment
from heliotrope.models.layers.dropout import SeededDropout
from heliotrope.models.layers.seeded import draw_numbers, layer_keys, reseed
from heliotrope.seeding import ranked, seed
from tests.support import (
    assert_same_tensors,
    classification,
    compose,
    fresh_seed,
    global_random_state_untouched,
    small_task,
)

MNIST = classification("mnist", (1, 28, 28), tuple("0123456789"))


def _model(name: str, **keys: Any) -> ModelConfig:
    cfg: ModelConfig = chosen("model", name, **keys)
    return cfg


@pytest.mark.parametrize(
    ("experiment", "parameters"),
    [
        ("fedavg_2nn", 199_210),  # McMahan et al. 2017, section 3
        ("fedavg_cnn", 1_663_370),  # the same
        ("mnist_mlp", 784 * 128 + 128 + 128 * 10 + 10),
    ],
)
def test_sizes_are_the_papers(experiment: str, parameters: int) -> None:
    run = compose("federated", f"experiment={experiment}")
    model = build(run.model, MNIST, run.seed)
    assert parameter_count(model) == parameters
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


CONFIGS = [
    _model("mlp", hidden=[6, 5], dropout=0.5),
    _model("mlp", hidden=[]),
    _model("cnn", channels=[2, 3], kernel_size=3, hidden=[4], dropout=0.2),
    _model("cnn", channels=[2], kernel_size=5, hidden=[], activation="gelu"),
]


@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
def test_weights_follow_from_the_seed_alone(cfg: ModelConfig) -> None:
    task = small_task(shape=(2, 9, 8))
    run_seed = fresh_seed()
    with global_random_state_untouched():
        first = build(cfg, task, run_seed)
    torch.manual_seed(fresh_seed())
    assert_same_tensors(build(cfg, task, run_seed).state_dict(), first.state_dict())
    other = build(cfg, task, run_seed + 1).state_dict()
    assert not torch.equal(
        other["1.weight" if cfg.name == "mlp" else "0.weight"], next(first.parameters())
    )
    assert first(torch.zeros(5, 2, 9, 8)).shape == (5, 3)
    assert all(tensor.isfinite().all() for tensor in first.state_dict().values())


# --- what does not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "shape", "named"),
    [
        (_model("cnn"), (64,), ("model=cnn", "data=small", "[64]", "Set model=mlp")),
        (
            _model("cnn", channels=[4] * 3),
            (1, 7, 28),
            ("model.channels=[4, 4, 4]", "7x28"),
        ),
        (
            _model("cnn", channels=[4, 0]),
            (1, 8, 8),
            ("model.channels=[4, 0]", "at least 1"),
        ),
        (_model("cnn", kernel_size=4), (1, 8, 8), ("model.kernel_size=4", "odd")),
        (_model("cnn", kernel_size=-1), (1, 8, 8), ("model.kernel_size=-1", "odd")),
        (_model("cnn", hidden=[0]), (1, 8, 8), ("model.hidden=[0]", "at least 1")),
        (_model("mlp", hidden=[8, -3]), (4,), ("model.hidden=[8, -3]", "at least 1")),
        (_model("mlp", dropout=1.0), (4,), ("model.dropout=1.0", "[0, 1)")),
        (_model("mlp", dropout=-0.1), (4,), ("model.dropout=-0.1", "[0, 1)")),
        (
            _model("mlp", activation="relo"),
            (4,),
            ("model.activation=relo", "mean 'relu'?"),
        ),
    ],
    ids=str,
)
def test_a_model_that_does_not_fit_is_refused(
    cfg: ModelConfig, shape: tuple[int, ...], named: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(cfg, small_task(shape=shape), 0)
    for part in named:
        assert part in str(caught.value)


@pytest.mark.parametrize("size", [4, 5, 7, 8, 28])
def test_every_image_that_the_poolings_leave_something_of_is_taken(size: int) -> None:
    cfg = _model("cnn", channels=[2, 2], kernel_size=5, hidden=[3])
    model = build(cfg, small_task(shape=(3, size, size + 1)), 0)
    assert model(torch.zeros(2, 3, size, size + 1)).shape == (2, 3)


# --- dropout ------------------------------------------------------------------------------


def layer(p: float, key: int) -> SeededDropout:
    made = SeededDropout(p)
    made.key.fill_(key)
    return made


def mask(p: float, key: int, *shape: int) -> torch.Tensor:
    return layer(p, key)(torch.ones(shape)) > 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_dropped_is_p_and_the_rest_is_scaled(p: float) -> None:
    count = 200_000
    out = layer(p, fresh_seed())(torch.ones(count))
    kept = out > 0
    deviation = (p * (1 - p) / count) ** 0.5
    assert abs((~kept).double().mean().item() - p) < 5 * deviation
    assert torch.equal(out[kept], torch.ones(int(kept.sum())) / (1 - p))


def test_masks_show_no_pattern() -> None:
    count = 100_000
    key = fresh_seed()
    a, b = mask(0.5, key, count), mask(0.5, key + 1, count)
    five_sigma = 5 * 0.5 / count**0.5
    for lag in (1, 2, 3, 8, 64, 784):
        agree = (a[lag:] == a[:-lag]).double().mean().item()
        assert abs(agree - 0.5) < five_sigma * 1.01, f"elements {lag} apart depend on each other"
    assert abs((a == b).double().mean().item() - 0.5) < five_sigma, "keys depend on each other"


def splitmix64(key: int, place: int) -> int:
    """Steele, Lea and Flood 2014, figure 16, in Python's integers."""
    full = (1 << 64) - 1
    z = (key + (place + 1) * 0x9E3779B97F4A7C15) & full
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & full
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & full
    return z ^ (z >> 31)


def test_the_mask_is_the_published_hash() -> None:
    key = seed(fresh_seed(), "step")
    signed = [splitmix64(key, place) ^ 1 << 63 for place in range(500)]
    wanted = [number >> 33 >= int(0.3 * 2**31) for number in signed]
    assert mask(0.3, key, 500).tolist() == wanted


def test_padding_does_not_move_the_mask_of_real_examples() -> None:
    key = fresh_seed()
    assert torch.equal(mask(0.4, key, 13, 7)[:5], mask(0.4, key, 5, 7))


def test_padding_does_not_move_the_mask_of_a_sequence_or_of_a_picture() -> None:
    key = fresh_seed()
    assert torch.equal(mask(0.4, key, 5, 13, 4)[:, :6], mask(0.4, key, 5, 6, 4))
    wide = mask(0.4, key, 5, 2, 9, 13)
    assert torch.equal(wide[:, :, :6, :7], mask(0.4, key, 5, 2, 6, 7))


@pytest.mark.parametrize("shape", [(50, 2000), (4, 3, 70_000), (10, 20, 30, 20), (9,) * 5])
def test_no_two_places_have_one_draw(shape: tuple[int, ...]) -> None:
    key = torch.tensor(fresh_seed())
    draws = ranked(key, draw_numbers(torch.tensor(3), shape))
    assert draws.shape == shape
    assert len(draws.unique()) == draws.numel()


@pytest.mark.parametrize("shape", [(12,), (12, 5), (12, 3, 5), (12, 2, 3, 5), (12, 2, 2, 3, 2)])
def test_parts_of_a_batch_draw_their_part_of_its_mask(shape: tuple[int, ...]) -> None:
    key = fresh_seed()
    whole = mask(0.4, key, *shape)
    part = layer(0.4, key)
    part.first.fill_(7)
    assert torch.equal(part(torch.ones(5, *shape[1:])) > 0, whole[7:])


def test_one_number_can_be_dropped() -> None:
    assert mask(0.5, fresh_seed()).shape == ()


def test_the_same_mask_in_a_stack_of_clients_as_alone() -> None:
    keys = torch.tensor([seed(fresh_seed(), client) for client in range(4)])
    inputs = torch.randn(4, 6, 5)
    template = SeededDropout(0.3)

    def one(key: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return functional_call(template, {"key": key}, (batch,))

    stacked = vmap(one)(keys, inputs)
    for client in range(4):
        assert torch.equal(stacked[client], layer(0.3, int(keys[client]))(inputs[client]))


def two_dropouts() -> nn.Sequential:
    return nn.Sequential(SeededDropout(0.5), nn.Identity(), SeededDropout(0.5))


def test_layers_and_steps_have_masks_of_their_own() -> None:
    model = two_dropouts()
    masks = []
    for step in (1, 2):
        reseed(model, seed(fresh_seed(), step))
        masks += [model[place](torch.ones(1000)) > 0 for place in (0, 2)]
    for number, a in enumerate(masks):
        for b in masks[number + 1 :]:
            assert 0.35 < (a == b).float().mean() < 0.65


def test_keys_for_a_stack_are_those_that_reseeding_sets() -> None:
    model, step_seed = two_dropouts(), fresh_seed()
    reseed(model, step_seed)
    keys = layer_keys(model, step_seed)
    buffers = {n: int(b) for n, b in model.named_buffers() if n.endswith(".key")}
    assert keys == buffers
    assert len(set(keys.values())) == 2


def test_a_wrapper_around_the_model_changes_no_mask() -> None:
    model, step_seed = two_dropouts(), fresh_seed()
    wrapped = nn.ModuleDict({"module": copy.deepcopy(model)})
    reseed(model, step_seed)
    reseed(wrapped, step_seed)
    inputs = torch.ones(50)
    assert torch.equal(model(inputs), wrapped["module"](inputs))


def test_nothing_is_dropped_in_evaluation_or_without_probability() -> None:
    inputs = torch.randn(20)
    assert torch.equal(layer(0.5, 3).eval()(inputs), inputs)
    assert torch.equal(layer(0.0, 3)(inputs), inputs)


def test_keys_are_no_part_of_a_checkpoint() -> None:
    assert list(two_dropouts().state_dict()) == []


def test_dropout_leaves_the_global_random_state_alone() -> None:
    with global_random_state_untouched():
        reseed(two_dropouts(), 5)
        layer(0.5, 3)(torch.ones(100))


def test_gradients_pass_through_what_was_kept() -> None:
    inputs = torch.randn(50, requires_grad=True)
    out = layer(0.25, 9)(inputs)
    out.sum().backward()
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, (out != 0) / 0.75)


def augmented(key: int, images: Tensor, *, flip: bool, shift: int, first: int = 0) -> Tensor:
    made = SeededAugment(flip=flip, shift=shift)
    made.key.fill_(key)
    made.first.fill_(first)
    result: Tensor = made(images)
    return result


def test_augmentation_moves_an_image_as_a_whole_and_repeats_its_edges() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8)
    seen = set()
    for key in range(300):
        moved = augmented(key, image, flip=False, shift=1)
        up, left = int(moved[0, 0, 3, 3] - 27) // 8, int(moved[0, 0, 3, 3] - 27) % 8
        down, right = (up, left) if left < 4 else (up + 1, left - 8)
        rows = (torch.arange(8) + down).clamp(0, 7)
        columns = (torch.arange(8) + right).clamp(0, 7)
        assert torch.equal(moved[0, 0], image[0, 0][rows][:, columns])
        seen.add((down, right))
    assert seen == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)}


def test_augmentation_mirrors_half_of_the_images() -> None:
    images = torch.randn(1, 2, 5, 6).expand(1000, -1, -1, -1)
    moved = augmented(fresh_seed(), images, flip=True, shift=0)
    mirrored = (moved == images.flip(3)).flatten(1).all(dim=1)
    assert bool(((moved == images).flatten(1).all(dim=1) ^ mirrored).all())
    assert 400 < int(mirrored.sum()) < 600


def test_an_image_is_augmented_in_a_part_of_a_batch_as_in_the_whole() -> None:
    images, key = torch.randn(10, 1, 8, 8), fresh_seed()
    whole = augmented(key, images, flip=True, shift=3)
    parts = [
        augmented(key, images[:4], flip=True, shift=3),
        augmented(key, images[4:], flip=True, shift=3, first=4),
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_nothing_is_augmented_in_evaluation() -> None:
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(SeededAugment(flip=True, shift=2).eval()(images), images)


def test_augmentation_leaves_the_names_of_the_weights() -> None:
    digits = small_task(shape=(1, 8, 8))
    plain = build(_model("cnn", channels=[4], kernel_size=3), digits, 0)
    other = build(_model("cnn", channels=[4], kernel_size=3, flip=True), digits, 0)
    assert list(plain.state_dict()) == list(other.state_dict())
    with pytest.raises(ConfigError, match=r"model\.shift=8 .* 8x8"):
        build(_model("cnn", channels=[4], kernel_size=3, shift=8), digits, 0)
