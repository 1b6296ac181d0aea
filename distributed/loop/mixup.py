"""Mixup (Zhang et al. 2018): each example is blended with another of its global batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, randperm

from heliotrope.data import Examples
from heliotrope.errors import ConfigError
from heliotrope.seeding import numpy_generator, torch_generator
from heliotrope.tasks import Task
from heliotrope.training.loop import TrainingBatch

__all__ = ["Mixup", "check_mixup"]


@dataclass(frozen=True)
class Mixup:
    """Blends batches of `train`: one share for a batch, drawn from Beta(alpha, alpha).

    The share and the pairing follow from the run's seed and the step: the same examples are blended
    whatever the number of workers. `inputs` are the fields that are blended.
    """

    train: Examples
    inputs: tuple[str, ...]
    alpha: float
    run_seed: int

    def __call__(self, batch: TrainingBatch, whole: Tensor, step: int) -> TrainingBatch:
        """Return one rank's batch of a step, blended with partners from the global batch.

        `whole` are the positions of the global batch in the training split, int64.
        """
        drawn = numpy_generator(self.run_seed, "mixup share", step)
        share = float(drawn.beta(self.alpha, self.alpha))
        generator = torch_generator(self.run_seed, "mixup pairs", step)
        pairing = randperm(len(whole), generator=generator)
        mine = pairing[batch.first : batch.first + len(batch)].to(whole.device)
        partners = self.train.take(whole[mine])
        blended = {n: batch.fields[n].lerp(partners[n], 1.0 - share) for n in self.inputs}
        return replace(batch, fields=batch.fields | blended, others=partners, share=share)


def check_mixup(alpha: float, task: Task) -> None:
    """Raise `ConfigError` if an input cannot be blended, or the task's losses are joint."""
    if alpha and task.joint:
        raise ConfigError(
            f"distributed.mixup={alpha:g} has no meaning with {type(task).__name__} of "
            f"data={task.facts.name}, whose losses compare examples with one another. Set "
            "distributed.mixup=0."
        )
    example = task.facts.example
    whole = [name for name in task.inputs if not example[name].is_floating_point()]
    if alpha and whole:
        raise ConfigError(
            f"distributed.mixup={alpha:g} blends inputs, but {whole[0]} of data={task.facts.name} "
            "holds whole numbers, which have nothing between them. Set distributed.mixup=0."
        )
