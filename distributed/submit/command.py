"""`heliotrope submit`: one of our commands, sent to a cluster and followed to its end."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from heliotrope.commands.output import say
from heliotrope.errors import ConfigError
from heliotrope.system.redaction import masked
from heliotrope.system.signals import held_back

from .options import options_of
from .run_command import command_of

__all__ = ["submit_command"]


def submit_command(arguments: Sequence[str]) -> None:
    """`[cluster=NAME] [cluster.KEY=VALUE ...] [dry_run=true] -- COMMAND [...]`: run it there.

    Streams what it prints, and ends with its exit code; Ctrl-C stops the job. `dry_run=true` prints
    what would be sent. `heliotrope list cluster` names the clusters, `list cluster=ray` its keys.
    """
    if "--" not in arguments:
        raise ConfigError(
            "submit needs -- before the command, such as: heliotrope submit cluster=local -- "
            "federated experiment=quickstart."
        )
    at = list(arguments).index("--")
    options = options_of(arguments[:at])
    command = command_of(arguments[at + 1 :])
    cluster = options.cluster()
    plan = cluster.prepare(command)
    if options.dry_run:
        say(masked(plan.text))
        return
    with held_back():  # a signal must not leave behind a job that nobody knows
        job = cluster.send(plan)
    where = f", run directory {command.directory}" if command.directory else ""
    sys.stderr.write(f"submitted: {job.name} of cluster={options.name}{where}\n")
    try:
        code = job.follow()
    except (KeyboardInterrupt, SystemExit):
        job.stop()
        raise
    if code:
        raise SystemExit(code)
