"""Mixup (Zhang et al. 2018): each example is blended with another of its global batch."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, randperm

from heliotrope.data import Split
from heliotrope.seeding import numpy_generator, torch_generator
from heliotrope.training import Batch

__all__ = ["mixed"]


def mixed(
    batch: Batch, train: Split, whole: Tensor, alpha: float, run_seed: int, step: int
) -> Batch:
    """Return one rank's `batch` of step `step`, blended with partners from the global batch.

    `whole` are the positions of the global batch in `train`, int64. One share for the whole
    batch, drawn from Beta(alpha, alpha), and one pairing, both from the run's seed and the
    step: the same examples are blended whatever the number of workers.
    """
    share = float(numpy_generator(run_seed, "mixup share", step).beta(alpha, alpha))
    pairing = randperm(len(whole), generator=torch_generator(run_seed, "mixup pairs", step))
    mine = pairing[batch.first : batch.first + len(batch.targets)].to(whole.device)
    partners = whole[mine]
    return replace(
        batch,
        inputs=batch.inputs.lerp(train.inputs.index_select(0, partners), 1.0 - share),
        other_targets=train.targets.index_select(0, partners),
        share=share,
    )
