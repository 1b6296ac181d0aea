"""What every benchmark has: its common options, and a record of where and when it was run."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from environments import interpreter
from rich.console import Console

from heliotrope.runs.directory import git_commit
from heliotrope.system.resources import machine

__all__ = ["begin", "console", "finish", "interpreters", "names", "parser", "with_peers"]

_ROOT = Path(__file__).resolve().parents[2]


def console() -> Console:
    """Return a console that is wide enough for tables, also where there is no terminal."""
    return Console(width=None if Console().is_terminal else 150)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--output", type=Path, help="JSON file for all that was measured")
    made.add_argument("--patience", type=float, default=60.0, help="seconds to wait for idle CPUs")
    return made


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return what parses some of the `known` names, with commas between."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(known)}")
        return chosen

    return parse


def with_peers(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options of a benchmark that runs peers, for `interpreters`."""
    made.add_argument(
        "--peer-python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="use this interpreter for a peer instead of making an environment",
    )
    made.add_argument("--environments", type=Path, default=_ROOT / ".venv-benchmarks")
    return made


def interpreters(peers: Iterable[str], options: argparse.Namespace) -> dict[str, str]:
    """Return the Python of each peer; ours is this one."""
    given = {"heliotrope": sys.executable}
    given |= dict(pair.split("=", 1) for pair in options.peer_python)
    return {
        peer: given.get(peer) or str(interpreter(peer, options.environments)) for peer in set(peers)
    }


def begin() -> dict[str, Any]:
    """Return a record of machine, version and time, to which results are added."""
    return {
        "machine": machine(),
        "git_commit": git_commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "load_average_before": os.getloadavg(),
    }


def finish(record: dict[str, Any], output: Path | None) -> None:
    """Say where the record was made, and write it to `output`, if that is given."""
    record["load_average_after"] = os.getloadavg()
    console().print(
        f"machine: {record['machine']}, commit {record['git_commit']}\n"
        f"load average: {record['load_average_before']} before, "
        f"{record['load_average_after']} after (this benchmark's own included)"
    )
    if output:
        output.write_text(json.dumps(record, indent=2) + "\n")
