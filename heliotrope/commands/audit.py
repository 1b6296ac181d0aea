"""`audit`: what a finished run gives away, measured beside what it promised."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from heliotrope import config
from heliotrope.audit.bound import Bound, bound_of
from heliotrope.audit.findings import Findings
from heliotrope.audit.inversion import Inversion, inverted, why_not_inverted
from heliotrope.audit.membership import Membership
from heliotrope.audit.page import render
from heliotrope.audit.terminal import tell
from heliotrope.commands.arguments import keys_and_values
from heliotrope.commands.trained import (
    read_checkpoint,
    read_config,
    read_result,
    trained_model,
)
from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.errors import ConfigError, RunDirectoryError, RunFailedError, closest
from heliotrope.models import build
from heliotrope.models.personal import personal_names
from heliotrope.modes import mode_module
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.events import strict
from heliotrope.system.console import plain_console
from heliotrope.tasks import Task, task_of

__all__ = ["audit_command", "audit_run"]

_KEYS = ("run", "parts", "shadows", "plugins")
_PARTS = ("bound", "mechanism", "membership", "inversion")
_SHADOWS = 16
_INVERTED = 4  # examples
_NOISY = (
    "central",
    "adaptive",
    "ftrl",
    "record",
    "dpsgd",
)  # whose releases are a clipped sum with noise


def audit_command(arguments: Sequence[str]) -> None:
    """`run=DIR [key=value ...]`: measure what a finished run gives away; writes audit.html there.

    Keys::

        parts=[bound,mechanism]   some parts only; otherwise all that the run allows
        shadows=16                models that the membership attack LiRA trains; 0 for none
        plugins=[mine.py]         code that the run needs, if it was never named here

    `bound` is a lower bound on epsilon, of a run with audit.canaries; `mechanism` takes rounds or
    steps of a protected run again, and looks at what they release; `membership` tells training
    examples from others; `inversion` reconstructs examples from single steps. What is found depends
    on the data, and carries no noise: keep it where the data are.
    """
    config.load_plugins(arguments)
    needed = {"run": "DIR, the directory of a run"}
    given = keys_and_values(arguments, "audit", _KEYS, needed)
    asked = None if "parts" not in given else _parts(given["parts"])
    console = plain_console()
    shadows = _count(given.get("shadows", str(_SHADOWS)))
    findings = audit_run(Path(given["run"]), asked, plain_console(stderr=True), shadows)
    tell(findings, console)
    console.print(f"audit: {Path(given['run']) / 'audit.html'}")


def _count(written: str) -> int:
    if not written.isdecimal() or int(written) == 1:
        raise ConfigError(f"shadows={written} must be 0, or a whole number of at least 2.")
    return int(written)


def _parts(written: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in written.strip("[]").split(","))
    for name in names:
        if name not in _PARTS:
            raise ConfigError(
                f"parts={written}: {name} is not one of {', '.join(_PARTS)}.{closest(name, _PARTS)}"
            )
    return names


def audit_run(
    directory: Path, asked: Sequence[str] | None, progress: Console, shadows: int = _SHADOWS
) -> Findings:
    """Audit the finished run in `directory`, and write audit.json and audit.html there.

    `asked` are the parts; None for all that there are.

    Raises
    ------
    ConfigError
        If it is no finished run, a part that was asked for is not possible with it, or nothing can
        be written there.
    RunFailedError
        If that turns out at the end.
    """
    subject = _Subject.read(directory)
    if not os.access(directory, os.W_OK):
        raise RunDirectoryError(
            f"run={directory} cannot be written, where audit.html and audit.json go. Name a copy."
        )
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
            mechanism = module.mechanism_checks(subject.run, subject.unplanted, subject.ledger)
    membership = subject.membership(shadows, progress) if "membership" in wanted else None
    inversions = None
    if "inversion" in wanted:
        with progress.status("reconstructing examples from single steps"):
            inversions = subject.inversions()
    findings = Findings(
        name=subject.run.name,
        mode=subject.result["mode"],
        promised=subject.result.get("privacy"),
        canaries=subject.result.get("canaries"),
        bound=bound,
        mechanism=mechanism,
        membership=membership,
        inversions=inversions,
        left_out=left_out,
    )
    _write(directory / "audit.json", json.dumps(strict(findings.told()), indent=2) + "\n")
    _write(directory / "audit.html", render(findings, subject.columns))
    return findings


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFailedError(
            f"{path} could not be written: {error.strerror or error}. Mend that and audit again."
        ) from error


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
        result = read_result(directory)
        saved, preparation = read_checkpoint(directory, None)
        dataset = load(run.data, run.seed, preparation, fold=run.data_fold)
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
        elif (why := self.of_mode("audit.mechanism").why_not_checked(self.run)) is not None:
            found["mechanism"] = why
        names = personal_names(build(self.run.model, self.task, self.run.seed))
        if kept := [name for name in names if name not in self.saved.model]:
            found["membership"] = (
                f"clients keep a part of the model, {kept[0]}: there is no whole to attack."
            )
        elif self.task.joint:
            found["membership"] = "the losses of examples depend on one another."
        if (why := why_not_inverted(self.task)) is not None:
            found["inversion"] = why
        return found

    def bound(self) -> Bound:
        model = self.model()
        scoring = self.of_mode("audit.canaries").canary_scores
        scores, canaries = scoring(self.run, self.unplanted, model, self.task)
        canaries.check(self.directory)
        privacy = self.result.get("privacy")
        delta = 0.0 if privacy is None else float(privacy["delta"])
        return bound_of(scores.numpy(), canaries.included, delta)

    def model(self) -> nn.Module:
        return trained_model(self.directory, self.run, self.saved, self.task)

    def membership(self, shadows: int, progress: Console) -> Membership:
        module = mode_module("federated", "audit.shadows")
        mode, examples = self.result["mode"], len(self.unplanted.train)
        epochs = self.result["examples_seen"] / examples
        with Progress(console=progress, transient=True) as bar:
            task = bar.add_task("training shadow models", total=shadows)
            found: Membership = module.membership_of(
                self.run,
                mode,
                self.unplanted,
                self.model(),
                self.task,
                shadows,
                epochs,
                lambda done, _: bar.update(task, completed=done),
            )
        return found

    def inversions(self) -> list[Inversion]:
        """Return what the first step of the run, on single test examples, gives away."""
        promised = self.result.get("privacy") or {}
        mode = self.run.distributed if self.result["mode"] == "distributed" else self.run.federated
        # Where each client has an account, all have the configured noise, or each its own.
        configured = vars(mode.privacy).get("noise_multiplier")
        clip, noise = promised.get("clip"), promised.get("noise_multiplier", configured)
        if mode.privacy.name not in _NOISY or noise is None:
            clip, noise = None, 0.0
        reach = 2 if promised.get("adjacency") == "replace-one" else 1
        model, test = build(self.run.model, self.task, self.run.seed), self.unplanted.test
        return [
            inverted(
                model,
                self.task,
                test.take(torch.tensor([row])),
                self.run.seed + row,
                clip,
                noise * reach * (clip or 0.0),
            )
            for row in range(min(_INVERTED, len(test)))
        ]

    @property
    def columns(self) -> Sequence[str]:
        return self.unplanted.info.numeric
