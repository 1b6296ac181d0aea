"""The gradient of a loss in which all examples of a global batch depend on one another.

1. The outputs of all ranks are gathered. No gradient flows back through that: of the ranks' outputs
   each has only its own as leaves.
2. Each rank takes the whole loss, and its gradient by the outputs of its own rows.
3. The gradient by the weights is that of the sum of (outputs * their gradient), taken part by part
   where gradients are accumulated: so the sum over the ranks is that of the whole loss. There the
   outputs are computed twice, and must be the same: `FirstPass`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heliotrope.errors import RunFailedError
from heliotrope.tasks import Task

__all__ = ["FirstPass", "Gather", "alone", "check_alike", "generators_of", "gradient_by_outputs"]

_ROUNDING = 1e-2  # of the outputs' length: what half precision may change between two passes

Gather = Callable[[Tensor], tuple[Tensor, int]]
"""From a rank's rows [B, ...] to those of all ranks, [N, ...], and where its own begin."""


def alone(rows: Tensor) -> tuple[Tensor, int]:
    """Return the rows of the only process, [B, ...], and where its own begin: a `Gather`."""
    return rows, 0


def gradient_by_outputs(
    task: Task, outputs: Tensor, batch: Mapping[str, Tensor], gather: Gather
) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of these rows, [], and the gradient of that of all ranks.

    The gradient is by `outputs`, [B, ...], of this rank's part of the global batch.
    """
    own = outputs.detach().requires_grad_()
    rows, first = gather(own.detach())
    whole = torch.cat([rows[:first], own, rows[first + len(own) :]])
    losses = task.losses(whole, batch)
    (gradient,) = torch.autograd.grad(losses.sum(), own)
    return losses.detach()[first : first + len(own)].sum(), gradient


@dataclass
class FirstPass:
    """What a first pass over a part of B examples has found, of which a second takes the gradient.

    Parameters
    ----------
    outputs, gradient
        The outputs, and the gradient of the losses by them, [B, ...].
    generators
        The states of torch's generators from which that pass drew, see `generators_of`.
    apart
        Whether the second pass gave others, bool [], once it is done.
    """

    outputs: Tensor
    gradient: Tensor
    generators: tuple[Tensor, ...]
    apart: Tensor | None = None

    def begin_second(self) -> None:
        """Let the next pass draw what the first drew, such as the dropout of a function."""
        torch.set_rng_state(self.generators[0])
        if len(self.generators) > 1:
            torch.cuda.set_rng_state(self.generators[1], self.outputs.device)

    def compare(self, outputs: Tensor) -> None:
        """Note whether a second pass gave other outputs, without waiting for a GPU."""
        away = (outputs.detach() - self.outputs).norm()
        self.apart = away > _ROUNDING * self.outputs.norm()


def generators_of(device: torch.device) -> tuple[Tensor, ...]:
    """Return the states of torch's generators of the CPU and, if it is a GPU, of `device`."""
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states


def check_alike(parts: Sequence[FirstPass]) -> None:
    """Raise `RunFailedError` if a second pass gave others than the first: the gradient is wrong."""
    apart = [part.apart for part in parts if part.apart is not None]
    if apart and bool(torch.stack(apart).any()):
        raise RunFailedError(
            "With distributed.accumulation_steps, a loss that compares examples needs two forward "
            "passes over each part of a batch, and the model gave other outputs in the second: it "
            "depends on more than weights, inputs and torch's generators, such as a count of its "
            "calls. Leave that out, or set distributed.accumulation_steps=1."
        )
