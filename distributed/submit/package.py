"""The working directory as a cluster gets it: code and configuration, without data and results."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from heliotrope.config.own_files import matches
from heliotrope.errors import ConfigError
from heliotrope.report.units import bytes_text

__all__ = ["Package"]

_ALWAYS_LEFT_OUT = ("/.git", "/.venv", "__pycache__", "*.pyc", ".*_cache")
_NAMED = 5  # of the largest files, in an error
_WHEN = (1980, 1, 1, 0, 0, 0)  # the same files make the same archive, which is not sent again


@dataclass
class Package:
    """Files by the names that they have on the cluster.

    Parameters
    ----------
    root
        The working directory.
    files
        Name, relative to the working directory of the job, and the file that is sent.
    """

    root: Path
    files: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path, left_out: Sequence[str]) -> Package:
        """Return the files of `root`, without those that .gitignore and .rayignore leave out.

        `left_out` are more patterns, as those files have them.
        """
        packaging = import_module("ray._private.runtime_env.packaging")
        found = cls(root)

        def add(path: Path) -> None:
            if path.is_file():
                found.files[str(path.relative_to(root))] = path

        patterns = [*_ALWAYS_LEFT_OUT, *left_out]
        rules = packaging._get_excludes(root, patterns)  # noqa: SLF001 - Ray's own
        packaging._dir_travel(  # noqa: SLF001
            root, [rules, _leads_up], add, include_gitignore=True, logger=_Silent()
        )
        return found

    @property
    def bytes(self) -> int:
        """Return how large the files are together."""
        return sum(path.stat().st_size for path in self.files.values())

    def name_of(self, path: Path) -> str | None:
        """Return what a file or folder on this machine is called on the cluster, if it is sent.

        `path` may also be a pattern, of Parquet files.
        """
        if not path.is_relative_to(self.root):
            return None
        name = str(path.relative_to(self.root))
        inside = name in self.files or any(each.startswith(f"{name}/") for each in self.files)
        found = matches(path)
        sent = {*self.files.values()}
        return name if inside or (found and sent.issuperset(found)) else None

    def with_code(self, path: Path, files: Mapping[str, Path]) -> str:
        """Return the name on the cluster of a file or folder of code, added if it is elsewhere.

        `files` are those to add, by their names relative to the folder of `path`.
        """
        if (name := self.name_of(path)) is not None:
            return name
        folder = f"submitted/{sha256(str(path).encode()).hexdigest()[:8]}"
        for relative, file in files.items():
            self.files[f"{folder}/{relative}"] = file
        return f"{folder}/{path.name}"

    def refuse_too_large(self, limit: int) -> None:
        """Raise `ConfigError` naming the largest files if all are more than `limit` bytes."""
        if self.bytes <= limit:
            return
        largest = sorted(self.files.items(), key=lambda item: -item[1].stat().st_size)[:_NAMED]
        listed = ", ".join(f"{name} ({bytes_text(path.stat().st_size)})" for name, path in largest)
        raise ConfigError(
            f"The working directory {self.root} has {bytes_text(self.bytes)} to send, and Ray "
            f"takes {bytes_text(limit)}. The largest files: {listed}. Name those that the command "
            "does not need in cluster.exclude or in .rayignore, such as "
            "cluster.exclude=[/data,/models]."
        )

    @property
    def name(self) -> str:
        """Return what Ray calls these files: the same for the same names, contents and modes."""
        digest = sha256()
        for name, file in sorted(self.files.items()):
            content = sha256(file.read_bytes()).hexdigest()
            digest.update(f"{name}\0{_mode(file)}\0{content}\0".encode())
        return f"_ray_pkg_{digest.hexdigest()}.zip"

    def write(self, path: Path) -> None:
        """Write a zip archive of the files; its bytes depend on names, contents and modes only."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, file in sorted(self.files.items()):
                info = zipfile.ZipInfo(name, _WHEN)
                info.external_attr = (_mode(file) | stat.S_IFREG) << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, file.read_bytes())

    def listed(self) -> list[str]:
        """Return a line for each file: its name, and its size in bytes."""
        return [f"{name}  {path.stat().st_size}" for name, path in sorted(self.files.items())]


def _leads_up(path: Path) -> bool:
    """Return whether a path is a link to a folder that it is below: its files would have no end."""
    if not path.is_symlink():
        return False
    real = os.path.realpath(path)
    return any(os.path.realpath(above) == real for above in path.parents)


def _mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


class _Silent:
    """In place of Ray's logger: which ignore files it has found is no news."""

    def info(self, *_: object) -> None: ...

    def warning(self, *_: object) -> None: ...

    def error(self, *_: object) -> None: ...
