"""Whether the code of plug-ins is still that which a run was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from heliotrope.config import Run
from heliotrope.errors import RunDirectoryError
from heliotrope.shell import typed

__all__ = ["changed_plugins", "going_on", "refuse_changed_plugins"]


def changed_plugins(config: Path, run: Run) -> str | None:
    """Return what has changed since `config`, of the run in `run.resume`, was written; or None.

    A file that was moved has not changed, and plug-ins may be added.
    """
    try:
        saved: Any = OmegaConf.load(config)
        before = [dict(entry) for entry in saved.get("plugins") or ()]
    except (OmegaConfBaseException, YAMLError, AttributeError, ValueError):
        return None  # it is no config, as who reads the rest of it will say
    return "; ".join(_changes(before, run.plugins)) or None


def refuse_changed_plugins(config: Path, run: Run) -> None:
    """Raise `RunDirectoryError` if plug-ins have changed and the command does not accept it."""
    changed = changed_plugins(config, run)
    if changed is not None and run.plugins_changed != "accept":
        raise RunDirectoryError(
            f"hydra.run.dir={config.parent} holds a run of other plug-ins: {changed}. Put back "
            "what it was trained with, or set plugins_changed=accept to go on with the code that "
            "is there now."
        )


def going_on(run: Run, directory: Path, reason: str | None = None) -> str:
    """Return what is typed to go on in `directory` once what failed is mended.

    That is a plug-in's, if there is one, or if `reason` names a line of it.
    """
    words = ["resume=true", typed("hydra.run.dir", directory)]
    if any(reason is None or entry["path"] in reason for entry in run.plugins):
        words.append("plugins_changed=accept")
    return " ".join(words)


def _changes(before: Sequence[dict[str, str]], now: Sequence[dict[str, str]]) -> list[str]:
    same = {entry["sha256"] for entry in now}
    here = {_name(entry): entry for entry in now}
    changes = []
    for entry in before:
        name = _name(entry)
        if entry["sha256"] in same:
            continue
        if name not in here:
            changes.append(f"{name} is not named now")
        else:
            sums = [each["sha256"][:12] for each in (entry, here[name])]
            changes.append(f"{name} has changed, SHA-256 {sums[0]}... to {sums[1]}...")
    return changes


def _name(entry: dict[str, str]) -> str:
    return entry.get("module") or entry["path"]
