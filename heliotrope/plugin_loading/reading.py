"""Reading plug-ins, without executing any of their code: files, folders, importable modules."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from heliotrope.errors import ConfigError, closest
from heliotrope.registry import Source

__all__ = ["GROUP", "is_path", "read", "read_again", "read_installed"]

GROUP = "heliotrope.plugins"
"""The group of entry points by which an installed package brings plug-ins."""

_MOST_BYTES = 16 * 2**20  # of a folder: it is sent to every worker


def is_path(name: str) -> bool:
    """Return whether `plugins=[name]` is meant as a file or folder, not as a module."""
    return name.endswith(".py") or not all(part.isidentifier() for part in name.split("."))


def read(name: str, base: Path, named_in: str) -> Source:
    """Return the plug-in that a user calls `name`; a relative path counts from `base`.

    A name without a slash is that of an importable module if there is one, and else that of a
    folder. Raises `ConfigError` naming `named_in` if it cannot be read.
    """
    path = (base / name).resolve()
    if is_path(name):
        return _of_path(path, named_in)
    folder = _found(name.partition(".")[0])
    if folder is not None:
        return _of_module(name, folder, named_in)
    if path.is_dir():
        return _of_path(path, named_in)
    raise ConfigError(
        f"{named_in}: there is no module {name} to be imported, and no folder {path}. Install "
        f"its package, or name a file: plugins=[{name}.py]."
    )


def read_again(source: Source, named_in: str) -> Source:
    """Return what is there now of a plug-in that was recorded with its path or its module."""
    if source.module is None:
        return _of_path(Path(source.path), named_in)
    return replace(read(source.module, Path(), named_in), distribution=source.distribution)


def read_installed() -> list[Source]:
    """Return the plug-ins that installed packages bring, by the names of their entry points."""
    found = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return [_of_entry_point(point) for point in found]


def _of_entry_point(point: EntryPoint) -> Source:
    dist = point.dist
    distribution = f"{dist.name} {dist.version}" if dist else point.name
    named_in = f"entry point {point.name} of the installed package {distribution}"
    return replace(read(point.module, Path(), named_in), distribution=distribution)


def _of_path(path: Path, named_in: str) -> Source:
    if not path.is_dir():
        files = _contents([path], path.parent, named_in)
    elif not (path / "__init__.py").is_file():
        raise ConfigError(
            f"{named_in}: the folder {path} has no __init__.py. Add one that imports the files "
            "that register something, such as 'from . import models'."
        )
    else:
        files = _contents(_visible(path), path, named_in)
        size = sum(map(len, files.values()))
        if size > _MOST_BYTES:
            raise ConfigError(
                f"{named_in}: the folder {path} holds {size / 2**20:.0f} MiB, which would be sent "
                f"to every worker; {_MOST_BYTES // 2**20} are the most. Keep data elsewhere."
            )
    return Source(str(path), _digest(files), files)


def _of_module(name: str, location: Path, named_in: str) -> Source:
    """Return a module, with all Python files of the top-level package that it belongs to."""
    top, _, inner = name.partition(".")
    if location.suffix == ".py":
        files = _contents([location], location.parent, named_in)
    else:
        files = _contents((p for p in _visible(location) if p.suffix == ".py"), location, named_in)
    stems = {path.removesuffix(".py").removesuffix("/__init__") for path in files}
    if inner and inner.replace(".", "/") not in stems:
        known = [f"{top}.{stem.replace('/', '.')}" for stem in stems]
        raise ConfigError(f"{named_in}: {location} has no module {name}.{closest(name, known)}")
    return Source(str(location), _digest(files), files, name)


def _found(top: str) -> Path | None:
    """Return where a top-level module lies, which is not imported: its folder, or its file."""
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # it is there without saying where, such as __main__
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin and spec.origin.endswith(".py") else None


def _visible(folder: Path) -> Iterable[Path]:
    """Yield the files of a folder, except for what Python and version control keep there."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from _visible(path)
        else:
            yield path


def _contents(paths: Iterable[Path], root: Path, named_in: str) -> dict[str, bytes]:
    """Return what files hold, by their names relative to `root`."""
    files = {}
    for path in paths:
        try:
            files[path.relative_to(root).as_posix()] = content = path.read_bytes()
            if path.suffix == ".py":
                importlib.util.decode_source(content)
        except (OSError, UnicodeDecodeError, SyntaxError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ConfigError(
                f"{named_in}: the plug-in {path} cannot be read: {reason}. Name an existing Python "
                "file; a relative path counts from the working directory, or from the experiment "
                "file that names it."
            ) from error
    return files


def _digest(files: dict[str, bytes]) -> str:
    """Return the SHA-256 of a file as `sha256sum` prints it; of several, of names and sums."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    if len(sums) == 1:
        return next(iter(sums.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
