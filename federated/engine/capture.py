"""A training step recorded once and replayed: autograd's work without autograd's overhead.

The step is run under a dispatch mode that writes down every kernel call, forward and backward,
as an fx graph; replaying it calls the same kernels on other tensors of the same shapes. What
is gained: no modules, no autograd graph, no optimizer object per step; and a gradient that is
one matrix product is handed over as its two factors, so that the optimizer can multiply them
straight into the weights. Recording takes milliseconds, so nothing is cached on disk.

The arithmetic is that of the eager step, kernel by kernel, only that the last addition is
fused, and that `kernels` knows some which do the same in less time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from heliotrope.seeding import generator_states, same_generator_states

from .recorder import NotCapturableError, Recorder, memory_of

__all__ = [
    "CapturedStep",
    "Gradient",
    "Losses",
    "NotCapturableError",
    "Step",
    "capture",
    "check_ends",
    "eager_step",
]


_LITTLE = 1e-3  # added where a check perturbs weights and inputs: some of them may be zero
_TOLERANCE = 1e-4  # of a gradient's length, between kernels that sum in another order

Gradient = Tensor | tuple[Tensor, Tensor] | None
"""A gradient, two matrices (or stacks of matrices) whose product it is, or None of a weight that
the step does not use."""

Losses = Callable[..., Tensor]
"""(parameters, keys, batch) -> losses, [B] of one client or [A, B] of a stack."""

Step = Callable[
    [Sequence[Tensor], Mapping[str, Tensor], Mapping[str, Tensor], Tensor],
    tuple[Tensor, Sequence[Gradient]],
]
"""(parameters, keys, batch, factors) -> (sum of factors * losses over B, gradients)."""


@dataclass(frozen=True)
class CapturedStep:
    """A recorded step, to be called as `Step` says.

    Parameters
    ----------
    replay
        (*parameters, *keys, *fields of the batch, factors) -> as `Step`.
    work
        Multiplications of its matrix products and convolutions, forward and backward.
    activation_bytes
        Of all that the forward pass makes.
    pure
        Whether it uses no tensors but those it is given, such as buffers of the model.
    graph
        What was recorded.
    """

    replay: Callable[..., tuple[Tensor, Sequence[Gradient]]]
    work: int
    activation_bytes: int
    pure: bool
    graph: fx.Graph

    def __call__(
        self,
        parameters: Sequence[Tensor],
        keys: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        factors: Tensor,
    ) -> tuple[Tensor, Sequence[Gradient]]:
        return self.replay(*parameters, *keys.values(), *batch.values(), factors)


def eager_step(losses: Losses) -> Step:
    """Return the step by plain autograd."""

    def step(
        parameters: Sequence[Tensor],
        keys: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        factors: Tensor,
    ) -> tuple[Tensor, Sequence[Gradient]]:
        with torch.inference_mode(mode=False), torch.enable_grad():
            leaves = [p.detach().requires_grad_() for p in parameters]
            each = losses(leaves, _savable(keys), _savable(batch))
            gradients = torch.autograd.grad(each, leaves, factors, allow_unused=True)
            memory = {memory_of(p) for p in parameters}
            apart = [g if g is None or memory_of(g) not in memory else g.clone() for g in gradients]
            return (each.detach() * factors).sum(dim=-1), apart

    return step


def _savable(values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the same values, of which autograd can save any: it refuses inference tensors."""
    return {
        name: value.clone() if value.is_inference() else value for name, value in values.items()
    }


def capture(
    losses: Losses,
    parameters: Sequence[Tensor],
    keys: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    factors: Tensor,
) -> CapturedStep:
    """Record one step on these tensors; the result replays it on others of the same shapes.

    `losses(parameters, keys, batch)` gives each example's loss, and `factors` are what these are
    multiplied with before they are summed: [B], or [K, B] of stacked clients. Raises
    `NotCapturableError` if the step draws random numbers, looks at values, changes its
    inputs in place, or replays to something else than it was.
    """
    eager = eager_step(losses)
    before = generator_states()
    names = [f"p{i}" for i in range(len(parameters))]
    names += [f"k{i}" for i in range(len(keys))] + [f"b{i}" for i in range(len(batch))]
    leaves = [p.detach().requires_grad_() for p in parameters]
    recorder = Recorder(
        zip([*names, "factors"], [*leaves, *keys.values(), *batch.values(), factors], strict=True)
    )
    with torch.enable_grad(), recorder:
        each = losses(leaves, keys, batch)
        kept = recorder.bytes
        gradients = torch.autograd.grad(each, leaves, factors, allow_unused=True)
        total = (each.detach() * factors).sum(dim=-1)
    if not same_generator_states(before, generator_states()):
        raise NotCapturableError("it draws from a process-wide random generator")
    program = recorder.program(total, gradients)
    step = CapturedStep(
        program.forward, recorder.work, kept, pure=not recorder.constants, graph=program.graph
    )

    rows = factors.dim() - 1
    other = [p * 1.25 + _LITTLE for p in parameters]
    seeds = {name: key + 1 for name, key in keys.items()}
    rolled = {name: _moved(value).roll(1, rows) for name, value in batch.items()}
    _check_equal(step(other, seeds, rolled, factors), eager(other, seeds, rolled, factors))
    return step


def check_ends(
    step: CapturedStep,
    losses: Losses,
    parameters: Sequence[Tensor],
    keys: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    factors: Tensor,
) -> None:
    """Check a stack's step, on its first and its last client, against the eager one of these.

    Raises `NotCapturableError` if they are not the same.
    """
    ends = [0, len(factors) - 1]
    total, gradients = step(parameters, keys, batch, factors)
    taken = [_rows(gradient, ends) for gradient in gradients]
    expected = eager_step(losses)(
        [p[ends] for p in parameters],
        {name: key[ends] for name, key in keys.items()},
        {name: value[ends] for name, value in batch.items()},
        factors[ends],
    )
    _check_equal((total[ends], taken), expected)


def _rows(gradient: Gradient, rows: list[int]) -> Gradient:
    if isinstance(gradient, tuple):
        return gradient[0][rows], gradient[1][rows]
    return None if gradient is None else gradient[rows]


def _moved(value: Tensor) -> Tensor:
    """Return other numbers of the same type, where they may be any."""
    return value * 0.75 + _LITTLE if value.is_floating_point() else value


def _check_equal(
    replayed: tuple[Tensor, Sequence[Gradient]], expected: tuple[Tensor, Sequence[Gradient]]
) -> None:
    """Compare two results by the length of their difference: a gradient may be tiny as a whole."""
    if [g is None for g in replayed[1]] != [g is None for g in expected[1]]:
        raise NotCapturableError("it uses other weights in another batch")
    replayed_whole, eager_whole = _flat(replayed[1]), _flat(expected[1])
    for ours, theirs in (
        (replayed_whole, eager_whole),
        (replayed[0].double(), expected[0].double()),
    ):
        both = torch.isfinite(ours) & torch.isfinite(theirs)
        same_holes = torch.equal(torch.isfinite(ours), torch.isfinite(theirs))
        apart = float((ours - theirs)[both].norm())
        if not same_holes or apart > _TOLERANCE * float(theirs[both].norm()):
            raise NotCapturableError("its step replays to other gradients on another batch")


def _flat(gradients: Sequence[Gradient]) -> Tensor:
    dense = [g[0] @ g[1] if isinstance(g, tuple) else g for g in gradients if g is not None]
    return torch.cat([part.double().flatten() for part in dense])
