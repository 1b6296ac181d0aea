"""Shadow models: trained as a run was, each on half of the examples, all of them at once.

They are clients of the engine that trains many clients in one step. What was trained distributed,
or with protection, is imitated by plain training on as many examples: an attacker who does not know
better does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heliotrope.audit.losses import losses_of
from heliotrope.audit.membership import (
    Membership,
    attack_of,
    confidences,
    halves,
    likelihood_ratios,
)
from heliotrope.config import Run, chosen
from heliotrope.config.audit import AuditConfig
from heliotrope.config.training import TargetConfig
from heliotrope.data import Dataset, Dense, Examples, Partition
from heliotrope.errors import RunFailedError
from heliotrope.seeding import numpy_generator
from heliotrope.system.resources import available_cpus, threads_of
from heliotrope.tasks import Classification, Task

from ..engine.context import assemble, divide
from ..pools.cohort_worker import CohortWorker
from ..population import Population
from ..updates import Instruction

__all__ = ["membership_of"]

_TOGETHER = 8  # shadow models between two looks at the progress

Advance = Callable[[int, int], None]
"""Takes how many of how many shadow models are trained."""


def membership_of(
    run: Run,
    mode: str,
    dataset: Dataset,
    model: nn.Module,
    task: Task,
    shadows: int,
    epochs: float,
    advance: Advance,
) -> Membership:
    """Return how well members are told from others by `model`, that of a run in `mode`.

    Members are the training examples of `dataset`; others are those of its other splits, and what
    clients hold out. `epochs` is how often the run went through the training split. With fewer than
    two `shadows`, only the loss is looked at.
    """
    pool = _pooled(dataset)
    rows, count = torch.arange(len(pool)), len(pool)
    member = np.arange(count) < len(dataset.train)
    member[_held_out(run, mode, dataset)] = False
    probable = isinstance(task, Classification)
    size = run.evaluation_batch_size
    losses = losses_of(model, task, pool, rows, size).numpy()
    attacks = [attack_of("loss", -losses[member], -losses[~member])]
    whole = max(1, round(epochs * len(dataset.train) / member.sum()))
    if shadows >= 2:
        generator = numpy_generator(run.seed, "shadow models")
        trained_on = halves(shadows, count, generator)
        found = []
        for shadow in _trained(run, mode, pool, task, trained_on, whole, advance):
            each = losses_of(shadow, task, pool, rows, size).numpy()
            found.append(confidences(each, probable=probable))
        target = confidences(losses, probable=probable)
        ratios = likelihood_ratios(target, np.stack(found), trained_on)
        attacks.append(attack_of("LiRA", ratios[member], ratios[~member]))
    return Membership(tuple(attacks), shadows if shadows >= 2 else 0, whole)


def _held_out(run: Run, mode: str, dataset: Dataset) -> NDArray[np.int64]:
    """Return the rows of the training split that clients hold out: nobody trains on them."""
    if mode != "federated" or not run.federated.holdout_fraction:
        return np.zeros(0, dtype=np.int64)
    parts = divide(run, dataset)
    population = Population(parts, run.federated.holdout_fraction, run.seed)
    clients = range(len(population))
    return np.setdiff1d(population.holdout_examples(clients), population.train_examples(clients))


def _pooled(dataset: Dataset) -> Examples:
    """Return the training examples, and after them those of the other splits."""
    splits = (dataset.train, dataset.test, dataset.validation)
    batches = [split.take(torch.arange(len(split))) for split in splits if len(split)]
    fields = {}
    for name, first in batches[0].items():
        values = [batch[name] for batch in batches]
        width = max(value.shape[1] for value in values) if first.dim() > 1 else 0
        # Of texts, those of one split may be wider than those of another.
        fields[name] = Dense(torch.cat([_widened(value, width) for value in values]))
    return Examples(fields)


def _widened(values: Tensor, width: int) -> Tensor:
    if values.dim() < 2 or values.shape[1] == width:
        return values
    more = values.new_zeros((len(values), width - values.shape[1], *values.shape[2:]))
    return torch.cat([values, more], dim=1)


def _trained(
    run: Run,
    mode: str,
    pool: Examples,
    task: Task,
    trained_on: NDArray[np.bool_],
    epochs: int,
    advance: Advance,
) -> list[nn.Module]:
    """Return the shadow models, each trained on its part of `pool`."""
    rows = [np.flatnonzero(each) for each in trained_on]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in rows])]).astype(np.int64)
    partition = Partition(np.concatenate(rows).astype(np.int64), offsets)
    context = assemble(_plain(run, mode, epochs, len(rows)), task, pool, partition)
    worker = CohortWorker(context, threads_of(available_cpus()))
    execution = worker.decide(min(_TOGETHER, len(rows)), ()).execution
    assert execution is not None  # automatically, there is always one
    found: list[nn.Module] = []
    start = context.global_weights
    for first in range(0, len(rows), _TOGETHER):
        cohort = range(first, min(first + _TOGETHER, len(rows)))
        reply = worker.train(start, Instruction(1), cohort, execution, reduce=False)
        for failure in reply.failures:
            raise RunFailedError(f"shadow model {failure.client}: {failure.reason}")
        found += [context.fresh_model(update.arrays) for update in reply.updates]
        advance(cohort.stop, len(rows))
    return found


def _plain(run: Run, mode: str, epochs: int, clients: int) -> Run:
    """Return `run` as one of clients who train once, for so many epochs, without protection."""
    cfg: dict[str, Any] = {"local_epochs": epochs, "clients_per_round": clients}
    if mode == "distributed":
        cfg["batch_size"] = run.distributed.batch_size
    federated = replace(
        run.federated,
        privacy=chosen("federated/privacy", "none"),
        attack=chosen("federated/attack", "none"),
        strategy=chosen("federated/strategy", "fedavg"),
        client_training="auto",
        client_timeout=None,
        clip_update_norm=None,
        client_momentum=0.0,
        holdout_fraction=0.0,
        bucket_size=1,
        lanes=None,
        **cfg,
    )
    return replace(run, federated=federated, audit=AuditConfig(), target=TargetConfig())
