"""Where a user's own data lies: relative paths become absolute, so that a run can move."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from heliotrope.config.run import Run

__all__ = ["from_folder_of", "make_absolute", "same_file"]

OWN_FILES = ("table", "images", "texts", "arrays")
"""The choices of data whose keys `path` and `test` name files or folders of the user."""

KEYS = ("path", "test")


def make_absolute(run: Run) -> None:
    """Take the paths of a run's own data from the working directory of now."""
    if run.data.name not in OWN_FILES:
        return
    for key in KEYS:
        if path := getattr(run.data, key):
            setattr(run.data, key, str(Path(path).resolve()))


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
