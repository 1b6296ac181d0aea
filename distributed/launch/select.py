"""Which launcher starts the workers: by `distributed.launcher`.

What a launcher needs is imported when it is chosen: `inline` and `torchrun` work where Ray is not
installed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from heliotrope.config import Run

from .base import Launcher

__all__ = ["open_launcher"]


def open_launcher(run: Run) -> AbstractContextManager[Launcher]:
    """Open the launcher that `run` names; `ResourceError` if it lacks the CPUs or GPUs."""
    match run.distributed.launcher:
        case "ray":
            from .ray_launcher import ray_launcher

            return ray_launcher(run)
        case "torchrun":
            from .torchrun import torchrun_launcher

            return torchrun_launcher(run)
        case _:
            from .inline import inline_launcher

            return inline_launcher(run)
