"""What a run does so that it can be audited afterwards."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AuditConfig"]


@dataclass
class AuditConfig:
    """How a run is prepared for `heliotrope audit`.

    `canaries` are participants that nobody is, planted before training: examples of random numbers
    in data-parallel training, clients with random updates in federated. Of each, a fair coin
    decides whether it takes part, so that what the model tells of them bounds epsilon from below.
    """

    canaries: int = 0
