"""`python -m distributed experiment=E [overrides]`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from heliotrope.system.process_exit import as_process

if TYPE_CHECKING:
    from types import ModuleType

    from heliotrope.config import Run


def _job(run: Run, directory: Path) -> None:
    from .job import run_job  # here: --help and a wrong key need not wait for torch

    run_job(run, directory)


def _stamp() -> str:
    """Return the stamp of a generated directory, one for all ranks that torchrun starts."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        from heliotrope.runs.stamp import new_stamp

        return new_stamp()
    from .launch.rendezvous import agreed_stamp

    return agreed_stamp()


def _ray() -> ModuleType:
    import ray  # here: only a sweep of parallel jobs needs it

    return ray


def main() -> int:
    """Run the command line's experiment and return the exit code."""
    from heliotrope.cli import run_mode  # here: Ctrl-C is answered during imports, too

    return run_mode("distributed", _job, _stamp, _ray)


if __name__ == "__main__":
    as_process(main)
