"""A captured step replays on other values, and what cannot be replayed is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from federated.engine.capture import NotCapturableError, capture, eager_step
from tests.support import fresh_seed

_WEIGHTS = torch.full((6,), 1 / 6)


def _inputs(seed: int) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    parameters = [torch.randn(5, 4, generator=draw), torch.randn(5, generator=draw)]
    inputs = torch.randn(6, 4, generator=draw)
    return parameters, {}, {"x": inputs, "y": torch.randint(5, (6,), generator=draw)}


_Named = Mapping[str, Tensor]


def _linear(parameters: Sequence[Tensor], keys: _Named, batch: _Named) -> Tensor:
    logits = functional.linear(batch["x"], parameters[0], parameters[1])
    return functional.cross_entropy(logits, batch["y"], reduction="none")


def test_a_replay_gives_what_autograd_gives_on_values_never_seen() -> None:
    seed = fresh_seed()
    step = capture(_linear, *_inputs(seed), _WEIGHTS)
    for other in range(3):
        batch = _inputs(seed + 1 + other)
        mean, gradients = step(*batch, _WEIGHTS)
        expected, dense = eager_step(_linear)(*batch, _WEIGHTS)
        torch.testing.assert_close(mean, expected)
        for ours, theirs in zip(gradients, dense, strict=True):
            torch.testing.assert_close(
                ours[0] @ ours[1] if isinstance(ours, tuple) else ours, theirs
            )


def test_the_gradient_of_a_matrix_comes_as_its_two_factors() -> None:
    _, (weight, bias) = capture(_linear, *_inputs(1), _WEIGHTS)(*_inputs(2), _WEIGHTS)
    assert isinstance(weight, tuple)
    assert isinstance(bias, Tensor)


def test_quicker_kernels_give_the_same_also_where_values_tie() -> None:
    draw = torch.Generator().manual_seed(fresh_seed())
    shapes = [(8, 1, 3, 3), (8,), (128, 8 * 14 * 14), (128,)]
    parameters = [0.1 * torch.randn(shape, generator=draw) for shape in shapes]
    inputs = torch.randn(10, 1, 28, 28, generator=draw)
    inputs[:, :, :16] = 0.5  # an even background: all of a window are its maximum
    targets, weights = torch.randint(128, (10,), generator=draw), torch.full((10,), 0.1)

    def losses(p: Sequence[Tensor], _: object, given: _Named) -> Tensor:
        pooled = functional.max_pool2d(functional.conv2d(given["x"], p[0], p[1], padding=1), 2)
        logits = functional.linear(pooled.flatten(1), p[2], p[3])
        return functional.cross_entropy(logits, given["y"], reduction="none")

    batch = (parameters, {}, {"x": inputs, "y": targets})
    mean, gradients = capture(losses, *batch, weights)(*batch, weights)
    expected, dense = eager_step(losses)(*batch, weights)
    torch.testing.assert_close(mean, expected)
    for ours, theirs in zip(gradients, dense, strict=True):
        whole = ours[0] @ ours[1] if isinstance(ours, tuple) else ours
        torch.testing.assert_close(whole, theirs, rtol=1e-4, atol=1e-6)


def _random(p: Sequence[Tensor], k: _Named, b: _Named) -> Tensor:
    return _linear(p, k, {**b, "x": functional.dropout(b["x"], 0.5)})


def _looking(p: Sequence[Tensor], k: _Named, b: _Named) -> Tensor:
    return _linear(p, k, {**b, "x": b["x"] * float(b["x"].abs().max().item())})


def _changing(p: Sequence[Tensor], k: _Named, b: _Named) -> Tensor:
    return _linear(p, k, {**b, "x": b["x"].add_(1.0)})


def _hiding(p: Sequence[Tensor], k: _Named, b: _Named) -> Tensor:
    return _linear(p, k, {**b, "x": b["x"] * torch.from_numpy(b["x"].numpy().copy())})


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        (_random, "draws random numbers"),
        (_looking, "depends on the values"),
        (_changing, "in place"),
        (_hiding, "other gradients"),
    ],
)
def test_a_step_that_cannot_be_replayed_is_refused(losses: Callable[..., Tensor], why: str) -> None:
    with pytest.raises(NotCapturableError, match=why):
        capture(losses, *_inputs(fresh_seed()), _WEIGHTS)


def _told_by_constants(p: Sequence[Tensor], k: _Named, b: _Named) -> Tensor:
    mask = torch.arange(4) != 2
    kept = torch.arange(4)[mask]  # as many as the mask has
    x = b["x"][:, kept] if bool(mask.any()) else b["x"]
    return _linear([p[0][:, kept], p[1]], k, {**b, "x": x})


def _counting() -> Callable[..., Tensor]:
    count = torch.zeros(())

    def losses(p: Sequence[Tensor], k: _Named, b: _Named) -> Tensor:
        started = bool(count > 0)
        count.add_(1)
        return _linear(p, k, b if started else {**b, "x": 2 * b["x"]})

    return losses


def test_a_step_may_look_at_what_it_makes_of_numbers_alone() -> None:
    seed = fresh_seed()
    step = capture(_told_by_constants, *_inputs(seed), _WEIGHTS)
    batch = _inputs(seed + 1)
    expected, _ = eager_step(_told_by_constants)(*batch, _WEIGHTS)
    torch.testing.assert_close(step(*batch, _WEIGHTS)[0], expected)


def test_a_step_that_looks_at_a_counter_it_changes_is_refused() -> None:
    with pytest.raises(NotCapturableError, match="changes in place"):
        capture(_counting(), *_inputs(fresh_seed()), _WEIGHTS)


def test_steps_that_use_nothing_but_their_inputs_are_known() -> None:
    shift = torch.ones(5)

    def shifted(parameters: Sequence[Tensor], keys: _Named, batch: _Named) -> Tensor:
        return _linear([parameters[0], parameters[1] + shift], keys, batch)

    assert capture(_linear, *_inputs(1), _WEIGHTS).pure
    assert not capture(shifted, *_inputs(1), _WEIGHTS).pure
