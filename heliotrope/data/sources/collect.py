"""Find a dataset's files on this machine, or fetch them into the cache."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from heliotrope.data.sources.download import DownloadError, fetch
from heliotrope.errors import DataError

__all__ = ["Source", "cache_dir", "collect"]


@dataclass(frozen=True)
class Source:
    """Where the files of one dataset can come from.

    Parameters
    ----------
    name
        The dataset's name: the value of `data.name` and the folder in the cache.
    sha256
        File name without `suffix` -> SHA-256 (hex) of the file as the mirrors have it.
    mirrors
        URLs of folders, each ending in "/", tried in this order.
    remedies
        Shell commands that bring the files; `{cache}` stands for the cache folder.
    system_dirs
        Folders where a system package puts the files.
    suffix
        What the mirrors' file names end with.
    """

    name: str
    sha256: Mapping[str, str]
    mirrors: tuple[str, ...]
    remedies: tuple[str, ...]
    system_dirs: tuple[Path, ...] = ()
    suffix: str = ".gz"

    def commands(self) -> list[str]:
        """Return the remedies, ready to paste into a shell."""
        cache = shlex.quote(str(cache_dir(self.name)))
        return [command.format(cache=cache) for command in self.remedies]


def cache_dir(name: str) -> Path:
    """Return the folder for the dataset `name`, `~/.cache/heliotrope/<name>` by default.

    `XDG_CACHE_HOME` replaces `~/.cache`; a relative one is ignored, as the XDG Base Directory
    specification says.

    Raises
    ------
    DataError
        If there is no home directory.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            raise DataError(
                f"data={name}: no home directory to look for the cache in ({error}). "
                "Set data.dir, or the environment variable XDG_CACHE_HOME."
            ) from error
    return base / "heliotrope" / name


def collect(source: Source, directory: str | None, *, download: bool) -> dict[str, Path]:
    """Return the path of each file of `source`, all from one folder.

    An explicit `directory` (`data.dir`) is the only place looked at. Without one, the cache
    and the system's folders are searched in turn; if none is complete and `download` is true,
    what the cache lacks is fetched into it.

    Raises
    ------
    DataError
        If `directory` lacks a file, or no folder is complete and nothing could be fetched; the
        message names every folder with what it lacks, and the commands that bring the data.
    """
    if directory is not None:
        folder = Path(directory).expanduser()
        found = _find(source, folder)
        if len(found) < len(source.sha256):
            raise DataError(
                f"data.dir={directory}: {_lack(source, folder, found)}. Put the files there, "
                "plain or gzipped, or remove data.dir to search the usual places."
            )
        return found

    cache = cache_dir(source.name)
    searched: list[str] = []
    for folder in (cache, *source.system_dirs):
        found = _find(source, folder)
        if len(found) == len(source.sha256):
            return found
        searched.append(f"{folder}: {_lack(source, folder, found)}")
    if not download:
        raise _not_found(source, searched, ["not tried, because data.download=false"])
    try:
        _fetch_missing(source, cache)
    except DownloadError as error:
        raise _not_found(source, searched, error.attempts) from error
    return _find(source, cache)


def _find(source: Source, folder: Path) -> dict[str, Path]:
    found = {}
    for name in source.sha256:
        dotted = name.replace("-idx", ".idx")  # as the files were named in their own archive
        for candidate in (name, dotted, f"{name}.gz", f"{dotted}.gz"):
            if (folder / candidate).is_file():
                found[name] = folder / candidate
                break
    return found


def _lack(source: Source, folder: Path, found: Mapping[str, Path]) -> str:
    if not folder.exists():
        return "no such directory"
    if not folder.is_dir():
        return "is not a directory"
    return "lacks " + ", ".join(name for name in source.sha256 if name not in found)


def _fetch_missing(source: Source, cache: Path) -> None:
    missing = [name for name in source.sha256 if name not in _find(source, cache)]
    files = {f"{name}{source.suffix}": source.sha256[name] for name in missing}
    fetch(files, source.mirrors, cache)


def _not_found(source: Source, searched: list[str], attempts: list[str]) -> DataError:
    commands = source.commands()

    def lines(items: list[str]) -> str:
        return "".join(f"\n    {item}" for item in items)

    return DataError(
        f"data={source.name}: the files are not on this machine and could not be fetched.\n"
        f"  Searched:{lines(searched)}\n"
        f"  Download:{lines(attempts)}\n"
        f"  Get them with {'one of' if len(commands) > 1 else 'this command'}:{lines(commands)}\n"
        "  or set data.dir to a folder that holds them."
    )
