"""`audit`: what a finished run gives away, measured beside what it promised."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from heliotrope import config
from heliotrope.audit.bound import Bound, bound_of
from heliotrope.audit.findings import Findings
from heliotrope.audit.terminal import tell
from heliotrope.commands.trained import (
    keys_and_values,
    read_checkpoint,
    read_config,
    trained_model,
)
from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.errors import ConfigError, closest, writing
from heliotrope.modes import mode_module
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.events import strict
from heliotrope.tasks import Task, task_of

__all__ = ["audit_command", "audit_run"]

_KEYS = ("run", "parts", "plugins")
_PARTS = ("bound", "mechanism")


def audit_command(arguments: Sequence[str]) -> None:
    """`run=DIR [key=value ...]`: measure what a finished run gives away; writes audit.html there.

    Keys::

        parts=[bound,mechanism]   some parts only; otherwise all that the run allows
        plugins=[mine.py]         code that the run needs, if it was never named here

    `bound` is a lower bound on epsilon, of a run with audit.canaries; `mechanism` takes rounds or
    steps of a protected run again, and looks at what they release. What is found depends on the
    data, and carries no noise: keep it where the data are.
    """
    config.load_plugins(arguments)
    needed = {"run": "DIR, the directory of a run"}
    given = keys_and_values(arguments, "audit", _KEYS, needed)
    asked = None if "parts" not in given else _parts(given["parts"])
    console = Console(soft_wrap=True)
    findings = audit_run(Path(given["run"]), asked, Console(stderr=True))
    tell(findings, console)


def _parts(written: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in written.strip("[]").split(","))
    for name in names:
        if name not in _PARTS:
            raise ConfigError(
                f"parts={written}: {name} is not one of {', '.join(_PARTS)}.{closest(name, _PARTS)}"
            )
    return names


def audit_run(directory: Path, asked: Sequence[str] | None, progress: Console) -> Findings:
    """Audit the finished run in `directory`, and write audit.json there.

    `asked` are the parts; None for all that there are.

    Raises
    ------
    ConfigError
        If it is no finished run, or a part that was asked for is not possible with it.
    """
    subject = _Subject.read(directory)
    left_out = subject.impossible()
    for part in asked or ():
        if part in left_out:
            raise ConfigError(f"parts={part}: {left_out[part]}")
    wanted = [part for part in asked or _PARTS if part not in left_out]
    bound = mechanism = None
    if "bound" in wanted:
        with progress.status("guessing which canaries took part"):
            bound = subject.bound()
    if "mechanism" in wanted:
        with progress.status("taking noisy sums again"):
            module = subject.of_mode("audit.mechanism")
            mechanism = module.mechanism_checks(subject.run, subject.dataset(), subject.ledger)
    findings = Findings(
        name=subject.run.name,
        mode=subject.result["mode"],
        promised=subject.result.get("privacy"),
        canaries=subject.result.get("canaries"),
        bound=bound,
        mechanism=mechanism,
        left_out=left_out,
    )
    path = directory / "audit.json"
    with writing(path):
        path.write_text(json.dumps(strict(findings.told()), indent=2) + "\n")
    return findings


@dataclass(frozen=True, eq=False)
class _Subject:
    """A finished run."""

    directory: Path
    run: Run
    result: Mapping[str, Any]
    saved: Checkpoint
    unplanted: Dataset
    task: Task

    @classmethod
    def read(cls, directory: Path) -> _Subject:
        run = read_config(directory)
        path = RunDirectory(directory).result
        if not path.exists():
            raise ConfigError(
                f"run={directory} is not finished: it has no result.json. Go on with resume=true, "
                "and audit it then."
            )
        result = json.loads(path.read_text())
        saved, preparation = read_checkpoint(directory, None)
        dataset = load(run.data, run.seed, preparation)
        return cls(directory, run, result, saved, dataset, task_of(dataset, run))

    @property
    def ledger(self) -> Path:
        return RunDirectory(self.directory).ledger

    def of_mode(self, name: str) -> ModuleType:
        return mode_module(self.result["mode"], name)

    def impossible(self) -> dict[str, str]:
        """Return which parts cannot be done, and why."""
        found = {}
        if not self.run.audit.canaries:
            found["bound"] = (
                "no canaries were planted before training, and a bound needs their coins. Train "
                "again with audit.canaries, such as 1000."
            )
        if self.result.get("privacy") is None:
            found["mechanism"] = "nothing was promised: the run was trained without protection."
        elif self.result["mode"] == "federated":
            found["mechanism"] = "rounds cannot be taken again yet."
        return found

    def bound(self) -> Bound:
        model = trained_model(self.directory, self.run, self.saved, self.task)
        scoring = self.of_mode("audit.canaries").canary_scores
        scores, canaries = scoring(self.run, self.unplanted, model, self.task)
        canaries.check(self.directory)
        privacy = self.result.get("privacy")
        delta = 0.0 if privacy is None else float(privacy["delta"])
        return bound_of(scores.numpy(), canaries.included, delta)

    def dataset(self) -> Dataset:
        """Return the data as the run was trained on it, with its canaries."""
        return self.unplanted
