"""`python -m federated experiment=E [overrides]`."""

from __future__ import annotations

from heliotrope.cli import run_mode
from heliotrope.leaving import as_process

from .job import run_job


def main() -> int:
    """Run the command line's experiment and return the exit code."""
    return run_mode("federated", run_job)


if __name__ == "__main__":
    as_process(main)
