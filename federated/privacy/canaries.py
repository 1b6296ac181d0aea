"""Canary clients, whose updates are random directions, or nothing if their coin leaves them out.

Andrew et al. 2023, "One-shot empirical privacy estimation for federated learning",
arXiv:2302.03098. Random directions of many dimensions are nearly orthogonal to one another and to
what others send: how far the model went along one of them tells whether its client took part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.config import Run
from heliotrope.data import Partition
from heliotrope.errors import ConfigError
from heliotrope.privacy.canaries import Canaries
from heliotrope.seeding import hashed, numpy_generator, seed

from ..aggregation import UpdateContext, UpdateTransform
from .names import privacy_of

__all__ = ["CanaryClients", "canary_clients", "check_canaries", "with_canary_clients"]

_BEYOND = 10.0  # times the clip: what canaries send is clipped, as far as it may go


def with_canary_clients(partition: Partition, count: int, run_seed: int) -> Partition:
    """Return the clients of `partition`, and after them `count` canaries.

    Each holds the first example of the training split: it trains like others, but what it sends
    has nothing of that. All of them are drawn like others, also those whose update is nothing.
    """
    if not count:
        return partition
    indices = np.concatenate([partition.indices, np.zeros(count, dtype=np.int64)])
    ends = partition.offsets[-1] + np.arange(1, count + 1)
    named = partition.named
    if named is not None:
        own = hashed(seed(run_seed, "canary names"), torch.arange(count)).numpy()
        named = np.concatenate([named, own])
    return Partition(indices, np.concatenate([partition.offsets, ends]), named)


@dataclass(frozen=True)
class CanaryClients(UpdateTransform):
    """The last clients of a run, in place of whose updates others are sent.

    Parameters
    ----------
    canaries
        Who of them takes part.
    first
        The number of the first of them.
    run_seed
        Of the run, from which the directions follow.
    norm
        The Euclidean norm of what they send.
    """

    canaries: Canaries
    first: int
    run_seed: int
    norm: float

    def direction(self, canary: int, size: int) -> NDArray[np.float64]:
        """Return the direction of a canary, counted from 0: a unit vector, float64 [size]."""
        drawn = numpy_generator(self.run_seed, "canary direction", canary).standard_normal(size)
        return drawn / np.linalg.norm(drawn)

    def apply(self, updates: Mapping[str, Tensor], context: UpdateContext) -> Mapping[str, Tensor]:
        """Return the updates, [K, *shape] each, those of canaries exchanged for their own."""
        sizes = [update[0].numel() for update in updates.values()]
        for row, client in enumerate(context.clients):
            canary = client - self.first
            if canary < 0:
                continue
            sent = torch.zeros(sum(sizes), dtype=torch.float64)
            if self.canaries.included[canary]:
                sent += torch.from_numpy(self.direction(canary, len(sent))) * self.norm
            for update, part in zip(updates.values(), torch.split(sent, sizes), strict=True):
                update[row] = part.view_as(update[row])
        return updates


def canary_clients(run: Run, clients: int) -> CanaryClients | None:
    """Return the canaries of `run`, the last of so many clients; None if there are none."""
    count = run.audit.canaries
    if not count:
        return None
    privacy = privacy_of(run.federated)
    norm = 1.0 if privacy is None else _BEYOND * privacy.clip
    canaries = Canaries.drawn("client", count, run.seed)
    return CanaryClients(canaries, clients - count, run.seed, norm)


def check_canaries(run: Run, *, personal: bool) -> None:
    """Raise `ConfigError` where canary clients would tell nothing of what is promised.

    `personal` says whether clients keep a part of the weights.
    """
    if not run.audit.canaries:
        return
    given, privacy = f"audit.canaries={run.audit.canaries}", privacy_of(run.federated)
    if privacy is not None and privacy.unit != "client":
        raise ConfigError(
            f"{given} plants clients, but federated/privacy={run.federated.privacy.name} protects "
            f"each {privacy.unit}. Set audit.canaries=0."
        )
    if personal:
        raise ConfigError(
            f"{given} plants clients, which have no weights to keep as those of model="
            f"{run.model.name} do. Set audit.canaries=0."
        )
