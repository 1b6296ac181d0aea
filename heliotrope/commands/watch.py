"""`watch`: live curves of the runs below a directory, or in a storage, in a local web page."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from heliotrope.commands.arguments import keys_and_values
from heliotrope.commands.output import say
from heliotrope.errors import ConfigError, RunDirectoryError
from heliotrope.runs.storage import Storage
from heliotrope.system.redaction import masked
from heliotrope.watch.live import LiveRuns
from heliotrope.watch.server import WatchServer

__all__ = ["watch_command"]

_DEFAULT = "runs"  # where the modes put them


def watch_command(arguments: Sequence[str]) -> None:
    """`[DIR or URL] [port=0]`: show a running job or sweep, live, in a page of this machine.

    Prints the address of the page and serves it until Ctrl-C; the jobs go on. DIR is the directory
    of a run, of a sweep, or of many (runs/ if none is given); URL is that of a storage, such as
    s3://bucket/runs, where `submit storage=URL` and `mirror` keep runs. Runs that begin later
    appear by themselves. The page has each run's state, time of a round, epoch and step, time left,
    and curves of all metrics.

    Only this machine reaches the page, and only who has its address. From another one:
    `ssh -L 8765:127.0.0.1:8765 HOST`, with port=8765 here.

    Keys::

        port=8765          the port to listen on, instead of one that is free
    """
    where, port = _parsed(arguments)
    with (
        suppress(KeyboardInterrupt),  # how a watch ends
        _live(where) as runs,
        WatchServer(runs, masked(where), port) as server,
    ):
        say(f"watching {masked(where)} at {server.address} until Ctrl-C")
        server.serve_forever()


def _parsed(arguments: Sequence[str]) -> tuple[str, int]:
    places = [word for word in arguments if "=" not in word or "://" in word or Path(word).exists()]
    if len(places) > 1:
        raise ConfigError(f"watch takes one DIR or URL, not also {places[1]}.")
    rest = [word for word in arguments if word not in places]
    given = keys_and_values(rest, "watch", ["port"], {})
    port = given.get("port", "0")
    if not (port.isdecimal() and int(port) < 1 << 16):
        raise ConfigError(
            f"port={port} is no port. Name a number from 1 to 65535, or leave it out."
        )
    return places[0] if places else _DEFAULT, int(port)


@contextmanager
def _live(where: str) -> Iterator[LiveRuns]:
    """Open what is watched: a directory that is there, or a storage that can be read."""
    if "://" in where:
        with tempfile.TemporaryDirectory(prefix="heliotrope-watch-") as folder:
            runs = LiveRuns(Path(folder), Storage(where, Path(folder), named=masked(where)))
            runs.fetch()
            yield runs
        return
    root = Path(where)
    # A directory that is not there is more often a slip of the pen than one to wait for.
    if not root.is_dir() and where != _DEFAULT:
        raise RunDirectoryError(
            f"{where} is no directory. Name one that holds runs, once its job has begun, or leave "
            f"it out for {_DEFAULT}/."
        )
    yield LiveRuns(root)
