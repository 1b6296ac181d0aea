"""Which directory a command means: those that are resumed are named."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.conf import HydraConf
from omegaconf import OmegaConf

from heliotrope.errors import ConfigError
from heliotrope.shell import typed

__all__ = ["is_generated", "refuse_unnamed"]


def is_generated(hydra_cfg: HydraConf, key: str) -> bool:
    """Return whether nobody chose the directory that `key` is."""
    hydra_values = OmegaConf.to_container(hydra_cfg, resolve=False)
    assert isinstance(hydra_values, dict)
    _, group, name = key.split(".")
    return "${stamp:" in str(hydra_values[group][name])


def refuse_unnamed(generated: Path, key: str, command: Sequence[str]) -> None:
    """Raise `ConfigError` for `resume=true` without a directory, with the newest that there is.

    `generated` is the new directory that was made instead, `key` the one to set: hydra.run.dir,
    or hydra.sweep.dir. `command` is what was typed.
    """
    above = "*/" if key == "hydra.sweep.dir" else ""
    marks = (f"{above}config.yaml", f"{above}fold-*/config.yaml")
    others = [path for path in generated.parent.glob("*") if path != generated]
    begun = {
        path: max(times)
        for path in others
        if (times := [found.stat().st_mtime for mark in marks for found in path.glob(mark)])
    }
    if not begun:
        raise ConfigError(
            "resume=true needs the run to continue, and there is none in "
            f"{generated.parent}. Leave it out to begin one, or set {key} to its directory."
        )
    newest = max(begun, key=lambda path: begun[path])
    again = f"{shlex.join(command)} {typed(key, newest)}"
    raise ConfigError(
        f"resume=true needs {key}, the directory to continue. The newest in {generated.parent} is "
        f"{newest.name}: {again}"
    )
