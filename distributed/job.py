"""`run_job`: one data-parallel run, from a checked configuration to its results.

This module and the launchers it opens import torch late: with Ray, the cluster starts while
another thread imports torch and loads the data.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from heliotrope.config import Run

from .launchers import opened

if TYPE_CHECKING:
    from .driver import Parts

__all__ = ["run_job"]

_Result = TypeVar("_Result")


def run_job(run: Run, directory: Path) -> None:
    """Train `run` data-parallel and leave its results in `directory`.

    In a process that torchrun started, act as its rank. Raises a `ConfigError` before any work
    if the data, the model, the machine or the directory do not fit the configuration, and a
    `RunFailedError` if training cannot be finished.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from .under_torchrun import run_one_rank

        run_one_rank(run, directory)
        return
    preparing = _in_background(lambda: _prepare(run))
    with opened(run) as launcher:
        parts = preparing.result()
        from .driver import drive

        drive(run, directory, parts, launcher)


def _prepare(run: Run) -> Parts:
    from .driver import prepare

    return prepare(run)


def _in_background(work: Callable[[], _Result]) -> Future[_Result]:
    """Do `work` in a thread that does not keep an interrupted process alive."""
    future: Future[_Result] = Future()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by future.result()
            future.set_exception(error)

    threading.Thread(target=do, daemon=True, name="prepare").start()
    return future
