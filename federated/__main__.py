"""`python -m federated experiment=E [overrides]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heliotrope.system.process_exit import as_process

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from heliotrope.config import Run


def _job(run: Run, directory: Path) -> None:
    from .job import run_job  # here: --help and a wrong key need not wait for it

    run_job(run, directory)


def _ray() -> ModuleType:
    import ray  # here: only a sweep of parallel jobs needs it

    return ray


def main() -> int:
    """Run the command line's experiment and return the exit code."""
    from heliotrope.cli import run_mode  # here: Ctrl-C is answered during imports, too

    return run_mode("federated", _job, ray=_ray)


if __name__ == "__main__":
    as_process(main)
