"""A stacked step for any number of clients: the bits of a recording for that number, or none."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from federated.engine.capture import CapturedStep, Losses, NotCapturableError, capture, check_ends
from federated.engine.resizing import StackSizes
from tests.support import fresh_seed

_EXAMPLES, _FEATURES, _HIDDEN, _CLASSES = 5, 4, 6, 3
_Named = Mapping[str, Tensor]
_Given = tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor], Tensor]


def _stack(clients: int, draw: torch.Generator) -> _Given:
    shapes = [(_HIDDEN, _FEATURES), (_HIDDEN,), (_CLASSES, _HIDDEN), (_CLASSES,)]
    parameters = [torch.randn(clients, *shape, generator=draw) for shape in shapes]
    inputs = torch.randn(clients, _EXAMPLES, _FEATURES, generator=draw)
    labels = torch.randint(_CLASSES, (clients, _EXAMPLES), generator=draw)
    factors = torch.rand(clients, _EXAMPLES, generator=draw)
    return parameters, {}, {"x": inputs, "y": labels}, factors


def _mlp(p: Sequence[Tensor], _: _Named, batch: _Named) -> Tensor:
    hidden = functional.linear(batch["x"], p[0], p[1]).relu()
    logits = functional.linear(hidden, p[2], p[3])
    return functional.cross_entropy(logits, batch["y"], reduction="none")


_STACKED: Losses = vmap(_mlp, randomness="error")


def _spread(p: Sequence[Tensor], k: _Named, batch: _Named) -> Tensor:
    """Losses that depend on the number of clients, but not in proportion."""
    return _STACKED(p, k, batch) * len(batch["x"]) ** 2


_SHIFT = torch.full((_CLASSES,), 0.5)


def _shifted(p: Sequence[Tensor], k: _Named, batch: _Named) -> Tensor:
    """Losses that use a tensor which is none of a step's inputs."""
    return _STACKED([*p[:3], p[3] + _SHIFT], k, batch)


def _shared(p: Sequence[Tensor], _: _Named, batch: _Named) -> Tensor:
    """Losses of one matrix for all clients: its product's kernel is chosen by their number."""
    first = batch["x"].reshape(-1, _FEATURES) @ p[0][0].t()
    hidden = first.view(*batch["x"].shape[:2], _HIDDEN).relu()
    logits = hidden @ p[2].transpose(1, 2)
    losses = functional.cross_entropy(logits.transpose(1, 2), batch["y"], reduction="none")
    return losses + p[1].sum() + p[3].sum()


def _sizes(losses: Losses, numbers: Sequence[int], draw: torch.Generator) -> StackSizes:
    sizes = StackSizes()
    for clients in numbers:
        given = _stack(clients, draw)
        sizes.add(_shape(given), capture(losses, *given))
    return sizes


def _shape(given: _Given) -> tuple[tuple[int, ...], ...]:
    _, _, batch, factors = given
    return (tuple(factors.shape), *(tuple(value.shape) for value in batch.values()))


def _tensors(step: CapturedStep, given: _Given) -> list[Tensor]:
    total, gradients = step(*given)
    parts = [g if isinstance(g, tuple) else (g,) for g in gradients]
    return [total, *(part for pair in parts for part in pair if part is not None)]


def test_the_step_of_any_stack_has_the_bits_of_its_own_recording() -> None:
    seed = fresh_seed()
    draw, choose = torch.Generator().manual_seed(seed), random.Random(seed)
    recorded = choose.sample(range(2, 20), 2)
    sizes = _sizes(_STACKED, recorded, draw)
    for clients in {2, 3, _EXAMPLES, _FEATURES, 19, *choose.sample(range(2, 70), 4)}:
        given = _stack(clients, draw)
        step = sizes.step(_shape(given))
        assert step is not None
        check_ends(step, _STACKED, *given)
        own = capture(_STACKED, *given)
        assert step.work == own.work
        for ours, theirs in zip(_tensors(step, given), _tensors(own, given), strict=True):
            assert torch.equal(ours, theirs)


def test_one_client_and_one_recording_tell_of_no_other_number() -> None:
    draw = torch.Generator().manual_seed(fresh_seed())
    sizes = _sizes(_STACKED, [1, 7], draw)
    assert sizes.step(_shape(_stack(5, draw))) is None
    sizes.add(_shape(_stack(4, draw)), capture(_STACKED, *_stack(4, draw)))
    assert sizes.step(_shape(_stack(5, draw))) is not None
    assert sizes.step(_shape(_stack(1, draw))) is None


@pytest.mark.parametrize("losses", [_spread, _shifted, _shared])
def test_a_step_whose_recordings_differ_otherwise_is_recorded_each_time(losses: Losses) -> None:
    draw = torch.Generator().manual_seed(fresh_seed())
    sizes = _sizes(losses, [3, 7, 11], draw)
    assert sizes.step(_shape(_stack(5, draw))) is None


def test_a_step_that_is_wrong_for_the_last_client_is_refused() -> None:
    draw = torch.Generator().manual_seed(fresh_seed())
    given = _stack(5, draw)

    def wrong(p: Sequence[Tensor], k: _Named, batch: _Named) -> Tensor:
        losses = _STACKED(p, k, batch)
        return torch.cat([losses[:-1], 2 * losses[-1:]])

    step = capture(wrong, *given)
    with pytest.raises(NotCapturableError, match="other gradients"):
        check_ends(step, _STACKED, *given)
