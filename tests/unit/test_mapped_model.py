"""A model built once, which others map from its file, is the one that they would have built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from heliotrope import registry
from heliotrope.config import chosen
from heliotrope.models import build, parameter_count
from heliotrope.models.layers.dropout import SeededDropout
from heliotrope.models.mapped import mapped_model, release_values, write_values
from tests.support import (
    assert_same_tensors,
    fresh_seed,
    global_random_state_untouched,
    mapped_from,
    small_task,
)


class _Odd(nn.Module):
    """Tied, frozen and recurrent weights, and a buffer that is drawn and not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 5)
        self.tied = nn.Linear(4, 5)
        self.tied.weight = self.enter.weight
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.lstm = nn.LSTM(5, 3, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("drawn", torch.randn(2), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs) + self.tied(inputs) * self.frozen + self.drawn.sum()
        outputs: Tensor = self.lstm(self.drop(hidden)[:, None])[0][:, 0]
        return outputs


class _Computes(_Odd):
    def __init__(self) -> None:
        super().__init__()
        self.scale = float(self.frozen.std())


class _Draws(_Odd):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand((), device="cpu").item()


class _Keeps(_Odd):
    def __init__(self) -> None:
        super().__init__()
        hidden = torch.randn(5)
        self.read = lambda: hidden


class _Hooked(_Odd):
    def __init__(self) -> None:
        super().__init__()
        self.enter.weight.register_hook(lambda gradient: gradient * 2)


def _values(model: nn.Module) -> dict[str, Tensor]:
    both = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach() for name, value in both.items()}


@pytest.mark.parametrize("name", ["mlp", "cnn", "logistic", "odd"])
def test_what_is_mapped_is_what_is_built(name: str, tmp_path: Path) -> None:
    registry.register("model", "odd", _Odd, "this file")
    shape = (1, 8, 8) if name == "cnn" else (4,)
    cfg, task, seed = chosen("model", name), small_task(3, shape), fresh_seed()
    built = build(cfg, task, seed).eval()
    write_values(built, tmp_path / "values")
    with global_random_state_untouched():
        mapped = mapped_model(cfg, task, seed + 1, tmp_path / "values")
    assert mapped is not None
    mapped.eval()
    assert str(mapped) == str(built)
    assert_same_tensors(_values(mapped), _values(built))
    trained = [[p.requires_grad for p in model.parameters()] for model in (mapped, built)]
    assert trained[0] == trained[1]
    inputs = torch.randn(2, *shape)
    assert torch.equal(mapped(inputs), built(inputs))

    mapped.train()(inputs).sum().backward()  # it can be trained, and changes nothing of the file
    torch.optim.SGD(mapped.parameters(), lr=1.0).step()
    again = mapped_model(cfg, task, seed, tmp_path / "values")
    assert again is not None
    assert_same_tensors(_values(again), _values(built))


def test_a_users_layers_stay_tied_and_their_dropout_seeded(tmp_path: Path) -> None:
    registry.register("model", "odd", _Odd, "this file")
    cfg, task = chosen("model", "odd"), small_task(3, (4,))
    write_values(build(cfg, task, 1), tmp_path / "values")
    mapped = mapped_model(cfg, task, 1, tmp_path / "values")
    assert isinstance(mapped, _Odd)
    assert mapped.tied.weight is mapped.enter.weight
    assert isinstance(mapped.drop, SeededDropout)


@pytest.mark.parametrize("kind", [_Computes, _Draws, _Keeps, _Hooked])
def test_what_cannot_be_built_without_values_is_not(kind: type[nn.Module], tmp_path: Path) -> None:
    registry.register("model", "odd", kind, "this file")
    cfg, task = chosen("model", "odd"), small_task(3, (4,))
    write_values(build(cfg, task, 1), tmp_path / "values")
    assert mapped_model(cfg, task, 1, tmp_path / "values") is None


def test_a_file_of_another_model_is_not_mapped(tmp_path: Path) -> None:
    cfg = chosen("model", "logistic")
    write_values(build(cfg, small_task(4, (4,)), 1), tmp_path / "values")
    assert mapped_model(cfg, small_task(3, (4,)), 1, tmp_path / "values") is None


def test_weights_are_mapped_and_buffers_in_memory(tmp_path: Path) -> None:
    registry.register("model", "odd", _Odd, "this file")
    cfg, task = chosen("model", "odd"), small_task(3, (4,))
    built = build(cfg, task, 1)
    write_values(built, tmp_path / "values")
    mapped = mapped_model(cfg, task, 1, tmp_path / "values")
    assert mapped is not None
    assert {mapped_from(weight) for weight in mapped.parameters()} == {str(tmp_path / "values")}
    others = [*built.parameters(), *mapped.buffers()]
    assert str(tmp_path / "values") not in set(map(mapped_from, others))


def test_released_values_leave_names_and_shapes() -> None:
    model = _Odd()
    before, count = {name: v.shape for name, v in _values(model).items()}, parameter_count(model)
    release_values(model)
    assert {name: v.shape for name, v in _values(model).items()} == before
    assert parameter_count(model) == count
    assert {value.device.type for value in _values(model).values()} == {"meta"}
