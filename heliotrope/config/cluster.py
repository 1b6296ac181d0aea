"""Schema of how a run uses a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ClusterConfig"]


@dataclass
class ClusterConfig:
    """A run on a Ray cluster, of either mode. Ray that the run starts itself has none to wait for.

    `wait_seconds` is how long a run waits for CPUs and GPUs that others hold, or that an
    autoscaler brings. `environment` and `credentials` are patterns of names of variables; see
    `heliotrope.cluster.environment`.
    """

    wait_seconds: float = 300.0
    environment: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)
