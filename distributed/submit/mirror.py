"""`heliotrope mirror`: a run whose directory is in a storage, such as s3://bucket/runs/mine.

This is what a job runs that was submitted with `storage=URL`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import get_args

from heliotrope.commands.arguments import keys_and_values
from heliotrope.config import Mode
from heliotrope.errors import ConfigError, RunFailedError
from heliotrope.runs.storage import Storage
from heliotrope.system.signals import STOPPING

from .base import Command

__all__ = ["mirror_command", "mirrored"]

_SECONDS = 5.0  # between two looks for files that have changed
_DIRECTORIES = ("hydra.run.dir", "hydra.sweep.dir")


def mirrored(command: Command, storage: str) -> tuple[Command, str]:
    """Return the command with its directory kept below `storage`, and the URL of that directory.

    There it has none of its own that the cluster would have to share.

    Raises `ConfigError` if it has no directory here.
    """
    if command.directory is None:
        raise ConfigError(
            f"storage={storage} keeps the directory of a run, and {command.words[0]} has none. "
            "Leave it out."
        )
    here = Path.cwd()
    inside = command.directory.is_relative_to(here)
    name = command.directory.relative_to(here) if inside else Path(command.directory.name)
    url = f"{storage.rstrip('/')}/{name.as_posix()}"
    words = [word for word in command.words if word.partition("=")[0] not in _DIRECTORIES]
    words = ["mirror", f"storage={url}", "--", *words]
    return replace(command, words=tuple(words), directory=None), url


def mirror_command(arguments: Sequence[str]) -> None:
    """`storage=URL -- COMMAND [...]`: run it in a new directory, brought from and kept in URL.

    The command is `distributed` or `federated`. URL is of a protocol of fsspec, such as
    s3://bucket/runs/mine or file:///shared/runs/mine.
    """
    if "--" not in arguments:
        raise ConfigError("mirror needs -- before the command.")
    at = list(arguments).index("--")
    url = keys_and_values(arguments[:at], "mirror", ["storage"], {"storage": "URL"})["storage"]
    words = arguments[at + 1 :]
    if not words or words[0] not in get_args(Mode):
        raise ConfigError(f"mirror runs {' or '.join(get_args(Mode))}. Write one of them after --.")
    with tempfile.TemporaryDirectory(prefix="heliotrope-") as folder:
        directory = Path(folder) / "run"
        storage = Storage(url, directory)
        storage.bring()
        key = _DIRECTORIES[bool({"-m", "--multirun"} & set(words))]
        typed = [sys.executable, "-m", "heliotrope", *words, f"{key}={directory}", "resume=true"]
        with subprocess.Popen(typed) as process, _handed_on(process), _saving(storage):
            code = process.wait()
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


@contextmanager
def _handed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let the process answer the signals that would stop this one, inside the block."""

    def hand_on(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _saving(storage: Storage) -> Iterator[None]:
    """Save what changes inside the block every few seconds, and the rest after it.

    A storage that is away for a while is tried again; raises `RunFailedError` if it is at the end.
    """
    over = threading.Event()

    def save() -> None:
        while not over.wait(_SECONDS):
            with suppress(RunFailedError):
                storage.save()

    saver = threading.Thread(target=save, daemon=True, name="mirror")
    saver.start()
    try:
        yield
    finally:
        over.set()
        saver.join()
        storage.save()
