"""`python -m distributed experiment=E [overrides]`."""

from __future__ import annotations

from pathlib import Path

from heliotrope.cli import run_mode
from heliotrope.config import Run
from heliotrope.leaving import as_process


def _job(run: Run, directory: Path) -> None:
    from .job import run_job  # here: --help and a wrong key need not wait for torch

    run_job(run, directory)


def main() -> int:
    """Run the command line's experiment and return the exit code."""
    return run_mode("distributed", _job)


if __name__ == "__main__":
    as_process(main)
