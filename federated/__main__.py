"""`python -m federated experiment=E [overrides]`."""

from __future__ import annotations

import sys
from pathlib import Path

from heliotrope.cli import run_mode
from heliotrope.config import Run


def _job(run: Run, directory: Path) -> None:
    from .simulation import run_job  # here: --help and a wrong key need not wait for torch

    run_job(run, directory)


def main() -> int:
    """Run the command line's experiment and return the exit code."""
    return run_mode("federated", _job)


if __name__ == "__main__":
    sys.exit(main())
