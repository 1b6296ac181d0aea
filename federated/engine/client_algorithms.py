"""What clients keep for the algorithms of a round: worked out once for any kind of training."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..updates import Instruction, Stack, Weights
from .context import TrainingContext

__all__ = ["finished"]


def finished(
    clients: TrainingContext, weights: Weights, instruction: Instruction, stack: Stack
) -> Stack:
    """Return the stack of clients that began with `weights`, with what their algorithms keep."""
    keeping = [algorithm for algorithm in instruction.algorithms if algorithm.keeps_state]
    if not keeping:
        return stack
    differences = {
        name: stack.arrays[name].double() - weights[name].to(stack.arrays[name].device).double()
        for name, p in clients.model.named_parameters()
        if p.requires_grad and name in stack.arrays
    }
    state, steps = instruction.states_of(stack.clients), torch.tensor(stack.steps)
    rate = instruction.optimizer(clients.optimizer).lr
    states = dict(stack.states)
    for algorithm in keeping:
        states.update(algorithm.finish(differences, state, steps, rate))
    return replace(stack, states=states)
