"""Clipped gradients of single examples are those of a plain loop over them, in float64."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from heliotrope.data import Info
from heliotrope.errors import ConfigError
from heliotrope.models.layers.dropout import SeededDropout
from heliotrope.models.layers.seeded import reseed
from heliotrope.tasks import Classification, DataFacts
from heliotrope.training.loop import TrainingBatch
from heliotrope.training.per_example import ClippedGradients
from heliotrope.training.separable import changed_by_a_pass, check_separable
from tests.support import classification, fresh_seed, training_batch

_TASK = classification("small", (1, 12, 12), ("a", "b", "c"))
_CLIP = 0.7


class _OnRows(nn.Module):
    """A classifier of pictures as sequences of rows."""

    def __init__(self, reader: nn.Module, width: int) -> None:
        super().__init__()
        self.reader, self.head = reader, nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        states = self.reader(images[:, 0])
        states = states[0] if isinstance(states, tuple) else states
        outputs: Tensor = self.head(states[:, -1])
        return outputs


class _Tied(nn.Module):
    """Layers that are called twice, whose weights are used elsewhere, and that are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.head, self.frozen = (nn.Linear(144, n) for n in (144, 3, 3))
        self.frozen.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        read: Tensor = self.head(self.twice(self.twice(flat).relu())) + self.frozen(flat)
        return read + functional.linear(flat, self.head.weight)


class _Embedding(nn.Module):
    """A layer whose weights another function uses, below a head that begins with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(144, 144), nn.Linear(144, 3)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        read = self.inner(images.flatten(1)).tanh()
        outputs: Tensor = self.head(functional.linear(read, self.inner.weight.T))
        return outputs


class _Odd(nn.Module):
    """Weights of float64, single numbers, and none at all."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(144, 5).double(), nn.Linear(5, 3)
        self.scale, self.none = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.zeros(0, 3))

    def forward(self, images: Tensor) -> Tensor:
        read = self.inner(images.flatten(1).double()).to(self.head.weight.dtype)
        outputs: Tensor = self.head(read * self.scale) + self.none.sum(dim=0)
        return outputs


class _Tiny(nn.Module):
    """A layer whose inputs are so small, and gradients so large, that their squares are not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(144, 3, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.layer(images.flatten(1) * 1e-24) * 1e24
        return outputs


def _of_two_names() -> nn.Module:
    layer = nn.Linear(20, 20)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(144, 20), layer, nn.Tanh(), layer, nn.Linear(20, 3)
    )


class _CalledMore(nn.Module):
    """A layer that is called once as long as nobody asks for more, as a plug-in's state may."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other, self.more = nn.Linear(144, 3), nn.Linear(144, 3), False

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        outputs: Tensor = self.layer(flat)
        return outputs + self.layer(flat.cos()) if self.more else outputs + self.other(flat)


_MODELS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(144, 20),
        nn.ReLU(),
        SeededDropout(0.5),
        nn.Linear(20, 3, bias=False),
    ),
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, dilation=2, bias=False),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ),
    "recurrent": lambda: _OnRows(nn.GRU(12, 5, batch_first=True), 5),
    "attention": lambda: _OnRows(
        nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0, batch_first=True), 12
    ),
    "tied": _Tied,
    "odd": _Odd,
    "tiny": _Tiny,
    "of two names": _of_two_names,
}


def _batch(size: int) -> TrainingBatch:
    return training_batch(torch.randn(size, 1, 12, 12) * 2, torch.randint(3, (size,)), seed=4)


def _reference(model: nn.Module, batch: TrainingBatch) -> dict[str, Tensor]:
    """Return the sums in float64; dropout's masks are those of the whole batch."""
    model = copy.deepcopy(model).double()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    for row in range(len(batch)):
        reseed(model, batch.seed, batch.first + row)
        outputs = model(batch.fields["image"][row : row + 1].double())
        loss = functional.cross_entropy(outputs, batch.fields["label"][row : row + 1])
        found = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
        norm = float(torch.cat([g.flatten() for g in found]).norm())
        for name, gradient in zip(trained, found, strict=True):
            total[name] += gradient * min(1.0, _CLIP / norm)
    return total


def _sums(model: nn.Module, *batches: TrainingBatch) -> dict[str, Tensor]:
    model.zero_grad()
    add = ClippedGradients(model, _TASK, _CLIP)
    for batch in batches:
        add(batch)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", _MODELS)
def test_sums_are_those_of_a_plain_loop_also_in_parts(kind: str) -> None:
    torch.manual_seed(fresh_seed())
    model, batch = _MODELS[kind]().train(), _batch(7)

    want = _reference(model, batch)
    for parts in (1, 3, 9):  # of nine some are empty
        got = _sums(model, *batch.parts(parts))
        assert got.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(got[name].double(), value, rtol=1e-4, atol=1e-5, msg=name)


def test_weights_that_something_else_uses_are_found_where_the_trial_has_no_gradient() -> None:
    torch.manual_seed(fresh_seed())
    model, batch = _Embedding().train(), _batch(6)
    add = ClippedGradients(model, _TASK, _CLIP)
    nn.init.normal_(model.head.weight)  # as after some steps
    add(batch)
    for name, value in _reference(model, batch).items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(gradient.double(), value, rtol=1e-4, atol=1e-5, msg=name)


class _Hooked(nn.Module):
    """A layer whose outputs a hook changes, below a head that begins with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(144, 9), nn.Linear(9, 3)
        nn.init.zeros_(self.head.weight)
        self.inner.register_forward_hook(lambda _module, _inputs, outputs: outputs * 3)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.inner(images.flatten(1)).tanh())
        return outputs


def test_outputs_that_a_hook_changes_are_seen_where_the_trial_has_no_gradient() -> None:
    torch.manual_seed(fresh_seed())
    model, batch = _Hooked().train(), _batch(6)
    add = ClippedGradients(model, _TASK, _CLIP)
    nn.init.normal_(model.head.weight)
    add(batch)
    for name, value in _reference(model, batch).items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(gradient.double(), value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_layer_that_comes_to_be_called_otherwise_than_in_the_trial_is_no_error() -> None:
    torch.manual_seed(fresh_seed())
    model, batch = _CalledMore().train(), _batch(6)
    add = ClippedGradients(model, _TASK, _CLIP)
    model.more = True
    add(batch)
    for name, value in _reference(model, batch).items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(gradient.double(), value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_model_that_cannot_be_copied_has_clipped_gradients() -> None:
    torch.manual_seed(fresh_seed())
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3)).train()
    model[0].lock = threading.Lock()
    with pytest.raises(TypeError, match="lock"):
        copy.deepcopy(model)
    add = ClippedGradients(model, _TASK, _CLIP)
    add(_batch(1))
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert 0 < float(norm) <= _CLIP * (1 + 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_which_sums_are_rounded_are_refused(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3).to(dtype))
    with pytest.raises(ConfigError, match=r"1\.weight is torch.*16.*float32"):
        check_separable("distributed/privacy=dpsgd", model, _TASK)


def test_a_layer_of_two_names_keeps_its_parameters() -> None:
    model = _of_two_names().train()
    before = dict(model.named_parameters())
    ClippedGradients(model, _TASK, _CLIP)(_batch(3))
    assert all(model.get_parameter(name) is each for name, each in before.items())


def _texts() -> Classification:
    example = {"tokens": torch.zeros(1, 5, dtype=torch.int64), "label": torch.tensor([0])}
    info = Info(class_names=("a", "b", "c"), vocabulary=tuple("-?abcdefg"))
    return Classification(DataFacts("texts", info, example))


class _LooksUp(nn.Module):
    """Vectors of words that are scaled down where they are looked up, and a mean of them."""

    def __init__(self, trained: bool = True, **settings: float) -> None:
        super().__init__()
        self.vectors, self.head = nn.Embedding(9, 6, padding_idx=0, **settings), nn.Linear(6, 3)
        self.vectors.weight.requires_grad_(trained)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.vectors(tokens).mean(dim=1))
        return outputs


@pytest.mark.parametrize("trained", [True, False])
def test_weights_that_a_pass_writes_to_are_refused(trained: bool) -> None:
    task = _texts()
    check_separable("distributed/privacy=dpsgd", _LooksUp(trained), task)
    short = _LooksUp(trained, max_norm=100.0)  # which no vector is as long as
    with pytest.raises(ConfigError, match=r"the model's parameter vectors\.weight.*max_norm=None"):
        check_separable("distributed/privacy=dpsgd", short, task)


def test_of_weights_that_a_pass_writes_to_an_update_tells_if_they_are_trained() -> None:
    frozen, trained = (_LooksUp(each, max_norm=1.0) for each in (False, True))
    assert changed_by_a_pass(trained, _texts(), trained=False) is None
    assert changed_by_a_pass(frozen, _texts(), trained=False) == "parameter vectors.weight"


class _Words(nn.Module):
    """A classifier of texts by the mean of their words, all of a row's or those within lengths."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.vectors, self.head = nn.Embedding(9, 6), nn.Linear(6, 3)
        self.masked = masked

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        vectors = self.vectors(tokens)
        if self.masked:
            inside = torch.arange(tokens.shape[1]) < lengths[:, None]
            vectors = vectors * inside[..., None] * tokens.shape[1] / lengths[:, None, None]
        outputs: Tensor = self.head(vectors.mean(dim=1))
        return outputs


def test_a_model_by_which_padding_tells_of_other_examples_is_refused() -> None:
    example = {
        "tokens": torch.zeros(1, 12, dtype=torch.int64),
        "tokens_length": torch.tensor([12]),
        "label": torch.zeros(1, dtype=torch.int64),
    }
    info = Info(class_names=("a", "b", "c"), vocabulary=tuple("-?abcdefg"))
    task = Classification(DataFacts("texts", info, example))
    check_separable("distributed/privacy=dpsgd", _Words(masked=True), task)
    with pytest.raises(ConfigError, match="longest of its batch"):
        check_separable("distributed/privacy=dpsgd", _Words(masked=False), task)


@pytest.mark.parametrize("kind", ["dense", "recurrent"])
def test_an_example_without_a_finite_gradient_adds_nothing(kind: str) -> None:
    torch.manual_seed(fresh_seed())
    model, batch = _MODELS[kind]().train(), _batch(5)
    images, labels = batch.fields["image"].clone(), batch.fields["label"]
    images[4] = torch.inf
    broken = training_batch(images, labels, seed=4)

    [with_it, without] = (_sums(model, each) for each in (broken, next(batch.parts(1))))
    whole = _sums(model, training_batch(images[:4], labels[:4], seed=4))
    for name, value in whole.items():
        torch.testing.assert_close(with_it[name], value)
    assert any(not torch.equal(without[name], value) for name, value in whole.items())


def test_layers_whose_gradients_follow_from_factors_are_found() -> None:
    for kind, layers in {"dense": 2, "convolutions": 3, "attention": 3, "tied": 0}.items():
        add = ClippedGradients(_MODELS[kind]().train(), _TASK, _CLIP)
        assert len(add._layers) == layers, kind  # else it is only slow
