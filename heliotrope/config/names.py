"""The name of a run, below which its directories are made."""

from __future__ import annotations

from pathlib import PurePosixPath

from heliotrope.errors import ConfigError

__all__ = ["plain_name"]


def plain_name(name: str) -> str:
    """Return a run's name if it is a path below any folder, as generated directories need it.

    Raises `ConfigError` otherwise.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ConfigError(
            f"name={name} leads out of runs/, where the directories of runs are made. Choose a "
            "name without .. and a leading /, or set hydra.run.dir to write elsewhere."
        )
    if not path.parts or not name.strip():
        raise ConfigError(
            f"name={name} names no folder below runs/. Choose a name, such as name=mine, or leave "
            "name out for the experiment's."
        )
    return name
