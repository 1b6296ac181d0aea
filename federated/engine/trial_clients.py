"""The made-up clients on which ways of training are compared, and the weights they begin with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from heliotrope.data import Partition
from heliotrope.seeding import isolated_rng, seed, torch_generator

from ..population import Population
from .context import TrainingContext

__all__ = ["TRIED", "starting_weights", "trial_context"]

TRIED = (0, 1)  # the clients
_MOST_EXAMPLES = 64  # of a batch, where a client's data are taken whole


def trial_context(context: TrainingContext, draw: int = 0) -> TrainingContext:
    """Return two clients of two and three batches a local epoch, the last ones not full.

    `draw` numbers the choice of their examples.
    """
    count = len(context.train)
    given = context.federated.batch_size
    batch = min(given or _MOST_EXAMPLES, max(2, count // 5))
    sizes = [batch + max(1, batch // 2), 2 * batch + min(2, batch)]
    if given is None:
        sizes = [batch, max(1, batch // 3)]
    sizes = [min(size, count) for size in sizes]
    with isolated_rng(draw):
        chosen = np.random.permutation(count)  # noqa: NPY002 - seeded just above
    # Clients of labels that are unlike; within one, examples as they come.
    indices = np.concatenate([np.sort(chosen[: sizes[0]]), np.sort(chosen[-sizes[1] :])])
    partition = Partition(indices.astype(np.int64), np.cumsum([0, *sizes]))
    cfg = replace(context.federated, local_epochs=3 if given is None else 1)
    if given is not None:
        cfg = replace(cfg, batch_size=batch)
    return replace(context, population=Population(partition, 0.0, context.run_seed), federated=cfg)


def starting_weights(context: TrainingContext) -> list[dict[str, Tensor]]:
    """Return the initial weights, and others of about twice their size."""
    first = {name: value.detach().clone() for name, value in context.model.state_dict().items()}
    other = dict(first)
    trained = {name for name, p in context.model.named_parameters() if p.requires_grad}
    for index, name in enumerate(sorted(trained & first.keys())):
        value = first[name]
        if not value.is_floating_point():
            continue
        generator = torch_generator(seed(context.run_seed, "verdict"), index)
        noise = torch.randn(value.shape, generator=generator).to(value)
        size = value.float().square().mean().sqrt().to(value) if value.numel() else 0.0
        other[name] = value * 1.5 + noise * (0.5 * size + 1e-3)
    by_id = {id(p): n for n, p in context.model.named_parameters(remove_duplicate=True)}
    for name, p in context.model.named_parameters(remove_duplicate=False):  # tied ones alike
        other[name] = other[by_id[id(p)]]
    return [first, other]
