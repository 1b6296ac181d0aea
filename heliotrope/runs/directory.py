"""A run's directory: claimed by one process, described by config.yaml, closed by result.json."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, NoReturn

from omegaconf import OmegaConf

from heliotrope.config import GROUPS, Mode, Run, conf_dir, from_resolved
from heliotrope.config.horizon import horizon_of, refuse_another_horizon
from heliotrope.config.own_files import same_file
from heliotrope.config.redaction import without_passwords
from heliotrope.errors import RunDirectoryError, writing
from heliotrope.runs.changed_plugins import refuse_changed_plugins
from heliotrope.runs.events import strict
from heliotrope.system.console import plain_console
from heliotrope.system.locks import LEASE, Holder, NoLocksError, lock

__all__ = ["MAY_CHANGE", "TRIALS", "RunDirectory", "flat", "git_commit", "versions"]

MAY_CHANGE = {
    "resume",
    "plugins",  # other code of theirs is accepted by plugins_changed
    "plugins_changed",
    "device",
    "evaluation_batch_size",
    "cluster.wait_seconds",
    "cluster.environment",
    "cluster.credentials",
    "data.dir",  # the same data, in another place
    "data.download",
    "distributed.epochs",
    "distributed.lr_horizon",  # within limits: see heliotrope.config.horizon
    "federated.lr_horizon",
    "distributed.launcher",
    "distributed.workers",
    "distributed.mesh.replicate",
    "distributed.mesh.shard",
    "distributed.cpus_per_worker",
    "distributed.accumulation_steps",
    "distributed.max_failures",
    "distributed.collective_timeout",
    "distributed.log_every_steps",
    "distributed.checkpoint_every",
    "distributed.checkpoint_every_steps",
    "distributed.sharded_checkpoints",
    "distributed.keep_last",
    "distributed.keep_best",
    "distributed.best_metric",
    "distributed.profile",
    "distributed.early_stopping.metric",
    "distributed.early_stopping.patience",
    "distributed.early_stopping.min_delta",
    "distributed.early_stopping.mode",
    "federated.rounds",
    "federated.pool",
    "federated.workers",
    "federated.cpus_per_worker",
    "federated.gpus_per_worker",
    "federated.client_timeout",
    "federated.quorum",
    "federated.checkpoint_every",
    "privacy.budget",
    "privacy.delta",
    "privacy.trials",
    "sweep.parallel",
    "target.metric",
    "target.value",
    "target.stop",
    "tracking.tensorboard",
    "tracking.mlflow",
}
"""What may change between a run and its resumption without making it another run."""
TRIALS = "trials.json"
"""In the directory of a sweep whose trials were drawn: what was drawn."""
_WHOLE_STRATEGIES = {"ddp", "fsdp"}  # of distributed.strategy: their checkpoints are alike


class RunDirectory:
    """Paths of a run, and the claim on them: at most one process writes here at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "run.log"
        self.checkpoints = self.path / "checkpoints"
        self.ledger = self.path / "privacy.jsonl"
        self.report = self.path / "report.html"
        self.result = self.path / "result.json"
        self.unprotected: str | None = None  # why no other process is kept out
        self._lock: IO[str] | None = None

    def claim(self, run: Run, mode: Mode) -> None:
        """Take the directory for this process; nothing in it is changed before `begin`.

        Raises `RunDirectoryError` if it cannot be written, if another process has it, if it
        holds a run and `resume` is off, or if the run in it is not this one.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise RunDirectoryError(
                f"hydra.run.dir={self.path} cannot be written: {error.strerror or error}. "
                "Choose another directory."
            ) from error
        self._take_lock(self._lock)
        try:
            if self.config.exists():
                if not run.resume:
                    raise RunDirectoryError(
                        f"hydra.run.dir={self.path} is already in use: it holds a run. "
                        "Set resume=true to continue it, or choose another directory."
                    )
                self._check_same(run, mode)
        except BaseException:
            self.release()
            raise

    def refuse_if_taken(self, run: Run, mode: Mode) -> None:
        """Raise what `claim` would, before seconds are spent on data and workers.

        Leaves no trace: a directory that was never claimed is not looked at.
        """
        if (self.path / ".lock").exists():
            self.claim(run, mode)
            self.release()

    def begin(self, run: Run) -> None:
        """Training begins or goes on here: write the resolved config, take back result.json."""
        temporary = self.config.with_suffix(".tmp")
        with writing(self.config):
            temporary.write_text(OmegaConf.to_yaml(OmegaConf.structured(without_passwords(run))))
            temporary.replace(self.config)
        self.result.unlink(missing_ok=True)  # it would say that the run is complete

    def release(self) -> None:
        """Give the directory up; the claim also ends with the process."""
        if self._lock is not None:
            if self.unprotected is not None:  # or a later process of this number looked like us
                self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def _take_lock(self, file: IO[str]) -> None:
        """Lock `file`; wait for the lock of a machine that may have died."""
        try:
            if not lock(file):
                self._await_lock(file)
        except NoLocksError as error:
            holder = Holder.named_in(file)
            if holder is not None and holder.alive and holder.pid != os.getpid():
                self._refuse(holder)
            self.unprotected = str(error)
        Holder.this().write(file)

    def _await_lock(self, file: IO[str]) -> None:
        """Return with the lock of `file`; raise if its holder is here, or shows signs of life."""
        holder, seen = Holder.named_in(file), self._signs_of_life()
        if holder is None or holder.near:
            self._refuse(holder)
        plain_console(stderr=True).print(
            f"hydra.run.dir={self.path} is in use by {holder}. Waiting up to {LEASE:g} s to see "
            "whether that machine has died: its lock then ends.",
            soft_wrap=True,
        )
        deadline = time.monotonic() + LEASE
        while not lock(file):
            if self._signs_of_life() != seen or time.monotonic() > deadline:
                self._refuse(holder)
            time.sleep(0.2)

    def _signs_of_life(self) -> list[tuple[int, int]]:
        """Return what changes in the directory as long as a run goes on in it."""
        files = [path for path in (self.metrics, self.log) if path.exists()]
        return [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    def _refuse(self, holder: Holder | None) -> NoReturn:
        self.release()
        gone = "" if holder is None or holder.near else f" and remove {self.path / '.lock'}"
        raise RunDirectoryError(
            f"hydra.run.dir={self.path} is already in use by {holder or 'another process'}. "
            f"Wait for it, stop it{gone}, or choose another directory."
        )

    def _check_same(self, run: Run, mode: Mode) -> None:
        there = self._mode() or mode
        if there != mode:
            raise RunDirectoryError(
                f"hydra.run.dir={self.path} holds a {there} run and cannot be resumed as "
                f"{mode}. Use python -m {there}, or another directory."
            )
        refuse_changed_plugins(self.config, run)
        earlier = from_resolved(self.config, with_plugins=False)
        before, now = flat(asdict(earlier)), flat(asdict(run))
        other = "federated" if mode == "distributed" else "distributed"
        groups = {f"{group.replace('/', '.')}.name": group for group in GROUPS}
        # Groups first: with another choice of a group, its keys differ as well.
        for key in [*groups, "distributed.strategy", *sorted(before.keys() | now.keys())]:
            if key in MAY_CHANGE or key.startswith(f"{other}."):
                continue
            both = before.get(key), now.get(key)
            alike = key == "distributed.strategy" and _WHOLE_STRATEGIES.issuperset(both)
            if key in ("data.path", "data.test"):  # relative in a run of an older version
                alike = same_file(*both)
            if key == "privacy.ledger" and both[0] is None:  # all of the run is charged there
                alike = True
            if both[0] != both[1] and not alike:
                name, (there, here) = groups.get(key, key), map(_as_typed, both)
                raise RunDirectoryError(
                    f"hydra.run.dir={self.path} holds a run with {name}={there}, not "
                    f"{name}={here}. Set {name}={there} to resume it, or choose another directory."
                )
        refuse_another_horizon(horizon_of(earlier, mode), horizon_of(run, mode), self.path)

    def _mode(self) -> str | None:
        """Return the mode that the start event names; None if the run died before it."""
        try:
            with self.metrics.open() as file:
                events = (json.loads(line) for line in file)
                return next((str(event["mode"]) for event in events if "mode" in event), None)
        except (OSError, ValueError, TypeError):
            return None

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, atomically; its presence says that the run is complete.

        NaN, such as the loss of a run that diverged, is written as null.
        """
        temporary = self.result.with_suffix(".tmp")
        with writing(self.result):
            with temporary.open("w") as file:
                json.dump(strict(result), file, indent=2, allow_nan=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.result)


def _as_typed(value: Any) -> str:
    """Return a value as one types it on the command line."""
    return json.dumps(value, separators=(",", ":")).strip('"')


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dict as one level of dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return leaves


def versions(*extra: str) -> dict[str, str]:
    """Return the versions of Python, the core packages and `extra`, without importing them."""
    found = {"python": platform.python_version()}
    for package in ("heliotrope", "torch", "numpy", *extra):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, with `-dirty`, or None."""
    root = conf_dir().parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
