"""Fetch files from mirrors: checked by SHA-256, and either complete in place or not there."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["DownloadError", "fetch"]

_CHUNK = 1 << 18
_log = logging.getLogger(__name__)


class DownloadError(Exception):
    """Some files could be had from no mirror; `attempts` has a line for each try."""

    def __init__(self, attempts: list[str]) -> None:
        super().__init__("; ".join(attempts))
        self.attempts = attempts


def fetch(
    files: Mapping[str, str],
    mirrors: Sequence[str],
    folder: Path,
    *,
    timeout: float = 10.0,
) -> None:
    """Fetch `files` into `folder`; a mirror is left for the next one at its first failure.

    A file appears under its name only when complete and verified, so a killed download leaves
    no half file behind and processes that fetch at the same time do not disturb each other.

    Parameters
    ----------
    files
        File name -> SHA-256 of its content, in hex.
    mirrors
        URLs of folders, each ending in "/".
    folder
        Created if needed.
    timeout
        Seconds to wait for a connection, and again for each piece of data.

    Raises
    ------
    DownloadError
        If no mirror is left and files are missing, or `folder` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError([f"{folder}: cannot be created: {error.strerror}"]) from error
    left = dict(files)
    attempts: list[str] = []
    with _progress() as progress:
        for mirror in mirrors:
            for name in list(left):
                failure = _fetch_one(mirror + name, left[name], folder / name, timeout, progress)
                if failure is not None:
                    attempts.append(failure)
                    break
                del left[name]
            if not left:
                return
    raise DownloadError(attempts or ["no mirror is known"])


def _fetch_one(
    url: str, sha256: str, target: Path, timeout: float, progress: Progress
) -> str | None:
    """Put one verified file in place; return what went wrong, or None."""
    from http.client import HTTPException

    _log.info("fetching %s", url)
    # Not tempfile: its files are readable by their owner only, and a cache may be shared.
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            found = _stream(url, file, timeout, progress)
            os.fsync(file.fileno())
        if found != sha256:
            return (
                f"{url}: SHA-256 is {found}, expected {sha256} "
                "(damaged on the way, or a proxy answered)"
            )
        part.replace(target)
        return None
    except (OSError, HTTPException) as error:
        return f"{url}: {_reason(error)}"
    finally:
        part.unlink(missing_ok=True)


def _stream(url: str, file: IO[bytes], timeout: float, progress: Progress) -> str:
    """Copy `url` into `file`; return the SHA-256 of what was copied."""
    from urllib.request import urlopen

    digest = hashlib.sha256()
    # S310 warns of file: URLs; these come from the table in the code, never from a config.
    with urlopen(url, timeout=timeout) as response:  # noqa: S310
        length = response.headers.get("Content-Length")
        bar = progress.add_task(url.rpartition("/")[2], total=int(length) if length else None)
        try:
            while chunk := response.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
                progress.advance(bar, len(chunk))
        finally:
            progress.stop_task(bar)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    from urllib.error import HTTPError, URLError

    if isinstance(error, URLError) and not isinstance(error, HTTPError):
        return str(error.reason)  # without urllib's "<urlopen error ...>"
    return str(error) or type(error).__name__


def _progress() -> Progress:
    """Return a progress display on stderr, silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
