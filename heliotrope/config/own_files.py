"""Where a user's own data lies: it must be there, and relative paths become absolute."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from heliotrope.config.run import Run
from heliotrope.errors import DataError

__all__ = ["absent", "from_folder_of", "make_absolute", "matches", "refuse_absent", "same_file"]

OWN_FILES = ("table", "images", "texts", "arrays", "token_stream")
"""The choices of data whose keys `path` and `test` name files or folders of the user."""

KEYS = ("path", "test")


def make_absolute(run: Run) -> None:
    """Take a run's own paths from the working directory of now: a run can move."""
    if run.privacy.ledger:
        run.privacy.ledger = str(Path(run.privacy.ledger).resolve())
    if run.data.name not in OWN_FILES:
        return
    for key in KEYS:
        if path := getattr(run.data, key):
            setattr(run.data, key, str(Path(path).resolve()))


def refuse_absent(run: Run) -> None:
    """Raise `DataError` if what holds a run's own data is not there, without reading any of it."""
    if run.data.name not in OWN_FILES:
        return
    what = "folder" if run.data.name in ("images", "texts") else "file"
    for key in KEYS:
        path = getattr(run.data, key)
        if path and not Path(path).exists() and not matches(Path(path)):
            raise absent(f"data.{key}", Path(path), what)


def matches(path: Path) -> list[Path]:
    """Return the Parquet files that `path` finds as a pattern, such as rows/2026-*.parquet."""
    if path.suffix.lower() != ".parquet" or not any(mark in str(path) for mark in "*?["):
        return []
    pattern = path.absolute()
    root = Path(pattern.anchor)
    return sorted(root.glob(str(pattern.relative_to(root))))


def absent(key: str, path: Path, what: str = "file") -> DataError:
    """Return the error of a file or folder, named by `key`, that is not there."""
    return DataError(
        f"{key}={path}: there is no such {what}. Set {key} to where it is; a relative path counts "
        f"from the working directory, {Path.cwd()}, and in the file of an experiment from its "
        "folder."
    )


def from_folder_of(experiment: Path, values: object) -> None:
    """Take the paths that the file of an experiment sets from the folder of that file, in place.

    What a file sets of a plug-in's dataset is left as it is.
    """
    if not isinstance(values, DictConfig) or _data_of(values) not in (None, *OWN_FILES):
        return
    data = OmegaConf.to_container(values).get("data")  # type: ignore[union-attr]
    if not isinstance(data, Mapping):
        return
    for key in KEYS:
        path = data.get(key)
        if isinstance(path, str) and path and not path.startswith("${"):
            OmegaConf.update(values, f"data.{key}", str((experiment.parent / path).resolve()))


def same_file(before: Any, now: Any) -> bool:
    """Return whether a path that an older run noted may be the absolute one of `now`."""
    if not isinstance(before, str) or not isinstance(now, str) or Path(before).is_absolute():
        return False
    parts = Path(os.path.normpath(before)).parts
    return Path(before).resolve() == Path(now) or Path(now).parts[-len(parts) :] == parts


def _data_of(values: DictConfig) -> str | None:
    """Return the choice of data of an experiment's file; None if it makes none."""
    for each in OmegaConf.to_container(values).get("defaults") or ():  # type: ignore[union-attr]
        if isinstance(each, Mapping):
            for group, name in each.items():
                if str(group).removeprefix("override ").strip().removeprefix("/") == "data":
                    return str(name)
    return None
