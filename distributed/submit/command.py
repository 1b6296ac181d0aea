"""`heliotrope submit`: one of our commands, sent to a cluster and followed to its end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from heliotrope.commands.output import say, to_nobody
from heliotrope.errors import ConfigError, HeliotropeError
from heliotrope.runs.storage import Storage
from heliotrope.system.redaction import masked
from heliotrope.system.signals import held_back

from .base import NobodyReadsError
from .mirror import mirrored
from .options import options_of
from .run_command import command_of

__all__ = ["submit_command"]


def submit_command(arguments: Sequence[str]) -> None:
    """`[cluster=NAME] [cluster.KEY=VALUE ...] [storage=URL] [dry_run=true] -- COMMAND`: run it.

    Streams what it prints, and ends with its exit code; Ctrl-C stops the job. `dry_run=true` prints
    what would be sent. `storage=s3://...` is for clusters that share no file system with this
    machine: the run's directory is kept there, and comes back here. `heliotrope list cluster` names
    the clusters, `heliotrope list cluster=ray` the keys of one.
    """
    if "--" not in arguments:
        raise ConfigError(
            "submit needs -- before the command, such as: heliotrope submit cluster=local -- "
            "federated experiment=quickstart."
        )
    at = list(arguments).index("--")
    options = options_of(arguments[:at])
    command = command_of(arguments[at + 1 :])
    directory, url = command.directory, None
    if options.storage is not None:
        command, url = mirrored(command, options.storage)
    cluster = options.cluster()
    plan = cluster.prepare(command)
    if options.dry_run:
        say(masked(plan.text))
        return
    with held_back():  # a signal must not leave behind a job that nobody knows
        job = cluster.send(plan)
    kept = f", kept in {url}" if url else ""
    where = f", run directory {directory}{kept}" if directory else ""
    sys.stderr.write(masked(f"submitted: {job.name} of cluster={options.name}{where}\n"))
    try:
        code = job.follow()
    except (KeyboardInterrupt, SystemExit):
        job.stop()
        raise
    except NobodyReadsError as error:
        to_nobody()
        sys.stderr.write(f"nobody reads the output any more; {job.name} goes on\n")
        raise SystemExit(128 + signal.SIGPIPE) from error
    finally:
        if url is not None and directory is not None:
            _bring_back(url, directory)
    if code:
        raise SystemExit(code)


def _bring_back(url: str, directory: Path) -> None:
    """Copy what a job has left in the storage into the directory of the run here."""
    try:
        count = Storage(url, directory).bring()
    except HeliotropeError as error:
        sys.stderr.write(masked(f"the results stay in {url}: {error}\n"))
        return
    sys.stderr.write(masked(f"{count} files of {url} are in {directory}\n"))
