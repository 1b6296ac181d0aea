"""What Ray starts for the pool: a process that is as the driver's is before it imports anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from heliotrope.cluster.environment import DriverEnvironment

__all__ = ["Process"]


class Process:
    """Holds an `Actor`, whose module and arguments import torch and a user's plug-ins.

    `references` are to the actor's class, setting and names, together, and to its data: Ray
    would unpack them earlier than this process has the driver's environment.
    """

    def __init__(
        self, environment: DriverEnvironment, note: Path | None, references: Sequence[Any]
    ) -> None:
        environment.enter()
        (kind, setting, names), *data = ray.get(list(references))
        self._actor = kind(setting, note, names, *data)

    def do(self, method: str, hung: Any, *arguments: Any) -> Any:
        """Call a method of the actor; see `Actor.do`."""
        return self._actor.do(method, hung, *arguments)

    def serve(self, address: str, token: bytes) -> None:
        """See `Actor.serve`."""
        self._actor.serve(address, token)
