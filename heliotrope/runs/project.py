"""The account that a run has in its project's privacy ledger."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from heliotrope.config import Mode, Run
from heliotrope.config.own_files import OWN_FILES
from heliotrope.errors import ConfigError, writing
from heliotrope.privacy.charges import ProjectCharges
from heliotrope.privacy.keys import NoiseKeys
from heliotrope.privacy.ledger import release_stamp
from heliotrope.privacy.project import (
    TRAINING,
    Budget,
    Entry,
    People,
    ProjectLedger,
    Sweep,
)
from heliotrope.runs.directory import TRIALS

__all__ = ["project_charges"]

_IDENTITY = "privacy.id"
_OVERRIDES = "overrides.json"  # what a command leaves in the directory of a job


def project_charges(
    run: Run, mode: Mode, directory: Path, content: str | None, keys: NoiseKeys, count: int
) -> ProjectCharges | None:
    """Return where the run in `directory` is charged; None if it shares no ledger.

    Parameters
    ----------
    content
        The hash of the data that it uses.
    keys
        Of its protection.
    count
        How many it protects.

    Raises
    ------
    ConfigError
        If `privacy.delta` promises too little for so many.
    """
    cfg, budget = run.privacy, None
    if cfg.ledger is None:
        return None
    if cfg.delta is not None and cfg.delta > 1 / count:
        raise ConfigError(
            f"privacy.delta={cfg.delta:g} must be at most 1/{count}={1 / count:g}: with more, to "
            f"publish the data of one {keys.unit} of {count} would count as private. Lower it."
        )
    if cfg.budget is not None and cfg.delta is not None:
        budget = Budget(cfg.budget, cfg.delta)
    source = str(run.data.path) if run.data.name in OWN_FILES else run.data.name  # type: ignore[attr-defined]
    sweep = _sweep(run, directory)
    entry = Entry(
        run=_identity(directory),
        directory=str(directory),
        name=run.name,
        mode=mode,
        purpose=_purpose(run, sweep),
        people=People(source, content or "", keys.unit),
        delta=keys.delta_for(count),
        budget=budget,
        sweep=sweep,
    )
    return ProjectCharges(ProjectLedger(Path(cfg.ledger)), entry)


def _purpose(run: Run, sweep: Sweep | None) -> str:
    if run.fold is not None:
        return "fold of a cross-validation"
    return TRAINING if sweep is None else "trial of a sweep"


def _sweep(run: Run, directory: Path) -> Sweep | None:
    """Return the sweep that a run is a trial of; `ConfigError` for a selection that is none."""
    sweep, selection = directory.parent, run.privacy.selection
    swept, drawn = _is_swept(directory), (sweep / TRIALS).exists()
    if selection is None:
        return Sweep(str(sweep)) if swept else None
    if not (swept and drawn):
        raise ConfigError(
            f"privacy.selection={selection} is of a sweep, whose number of trials is drawn: type "
            "it, -m and privacy.trials on the command line. Set privacy.selection=null."
        )
    early = run.distributed.early_stopping.metric
    if (run.target.metric is not None and run.target.stop) or early is not None:
        raise ConfigError(
            f"privacy.selection={selection} needs trials that spend alike, whatever they reach. "
            "Set target.stop=false, and distributed.early_stopping.metric=null."
        )
    saved = json.loads((sweep / TRIALS).read_text())
    return Sweep(str(sweep), saved["selection"], saved["mean"], len(saved["jobs"]))


def _is_swept(directory: Path) -> bool:
    """Return whether a job is one of several: a run alone notes its overrides, too."""
    try:
        return bool(json.loads((directory / _OVERRIDES).read_text())["swept"])
    except FileNotFoundError:
        return False


def _identity(directory: Path) -> str:
    """Return what tells the run from others, and from its copies, which may release other things.

    A run that was moved counts as a copy: then more is counted than was released.
    """
    path = directory / _IDENTITY
    with writing(path):
        try:
            with path.open("x") as file:
                file.write(secrets.token_hex(8))
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            pass
        return release_stamp(path.read_text(), path.stat().st_ino, str(directory))
