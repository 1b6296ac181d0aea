"""A client's steps where each of its examples is protected: clipped, summed, noisy (DP-SGD)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from heliotrope.training.loop import Recipe, TrainingBatch, penalty_of
from heliotrope.training.noisy_steps import release_sums, step_noise
from heliotrope.training.per_example import ClippedGradients

from ..updates import Instruction
from .context import TrainingContext

__all__ = ["private_recipe"]


def private_recipe(
    context: TrainingContext,
    model: nn.Module,
    instruction: Instruction,
    client: int,
    recipe: Recipe,
) -> Recipe:
    """Return `recipe` with gradients that tell hardly anything of an example.

    Each step:

    1. The gradient of each drawn example is clipped, and they are added up.
    2. Noise is added once; the sum is divided by how many examples the step expects.
    3. Penalties of the weights, and the terms of algorithms that `recipe` adds, join: they tell
       nothing of the examples.
    """
    assert context.record is not None
    if instruction.noise is None:
        raise ValueError("a client whose examples are protected was not told how much noise to add")
    (examples,) = context.population.train_sizes([client])
    expected = min(context.federated.batch_size or examples, examples)
    deviation = instruction.noise.multipliers[client] * context.record.clip
    stamp = instruction.noise.stamp
    penalty = penalty_of(model, context.loss)
    parameters = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in parameters)
    device, change = context.train.device, recipe.change_gradients
    seeds: list[int] = []

    model.train()
    clipped = ClippedGradients(model, context.task, context.record.clip)

    def backward(batch: TrainingBatch) -> Tensor:
        seeds.append(batch.seed)
        return clipped(batch)

    def release() -> None:
        noise = step_noise(seeds.pop(), stamp, count, deviation).to(device)
        release_sums(parameters, noise, expected, penalty)
        if change is not None:
            change()

    return replace(recipe, backward=backward, change_gradients=release)
