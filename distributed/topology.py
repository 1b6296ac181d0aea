"""Where a worker stands among the others of its run."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Topology", "topology_from_environment"]


@dataclass(frozen=True)
class Topology:
    """Which of the workers one is. `local_rank` counts on its own machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def topology_from_environment() -> Topology:
    """Return the topology that torchrun tells this process in RANK, WORLD_SIZE and LOCAL_RANK."""
    return Topology(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
    )
