"""`run_job`: one data-parallel run, from a checked configuration to its results.

This module and the launchers it opens import torch late: with Ray, the cluster starts while
another thread imports torch and loads the data.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from heliotrope.config import Run
from heliotrope.runs.directory import RunDirectory
from heliotrope.system.background import in_background
from heliotrope.system.process_exit import stoppable

from .launch.select import open_launcher

if TYPE_CHECKING:
    from .driver import Components

__all__ = ["run_job"]


def run_job(run: Run, directory: Path) -> None:
    """Train `run` data-parallel and leave its results in `directory`.

    In a process that torchrun started, act as its rank. Raises a `ConfigError` before any work
    if the data, the model, the machine or the directory do not fit the configuration, and a
    `RunFailedError` if training cannot be finished.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from .torchrun_ranks import run_one_rank

        run_one_rank(run, directory)
        return
    RunDirectory(directory).refuse_if_taken(run, "distributed")
    # Ray's start takes longer than these imports, so they leave the CPUs to it.
    gently = run.distributed.launcher == "ray"
    with ExitStack() as stack:
        with stoppable() if gently else nullcontext():
            preparing = in_background(lambda: _prepare(run), gently=gently)
            launcher = stack.enter_context(open_launcher(run))
        components = preparing.result()
        from .driver import drive

        drive(run, directory, components, launcher, stack.close)


def _prepare(run: Run) -> Components:
    from .driver import build_components

    return build_components(run)
