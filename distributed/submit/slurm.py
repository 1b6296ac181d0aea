"""`cluster=slurm`: a batch job of one or several nodes, sent by `sbatch`.

The script is made here and not by submitit, which sends a pickled function instead of a command,
cannot show what it would send without Slurm, and knows a job's state from `sacct` alone, which
answers only where accounting is set up.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from heliotrope.errors import ConfigError, ResourceError, RunDirectoryError, closest

from .base import Cluster, Command, Job, Plan
from .slurm_job import SlurmJob

__all__ = ["slurm"]

_OF_NO_JOB = {"SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS"}  # how Slurm is reached


def slurm(
    *,
    nodes: int = 1,
    cpus_per_task: int = 1,
    gpus_per_node: int = 0,
    minutes: int = 60,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    sbatch: Sequence[str] = (),
    setup: Sequence[str] = (),
    requeue: bool = True,
    notice_seconds: int = 120,
    wait_seconds: float = 300.0,
) -> Cluster[SlurmPlan]:
    """Run as a job of Slurm, with Ray on each of its nodes; they must share the run's directory.

    Parameters
    ----------
    nodes
        How many nodes one job has.
    cpus_per_task
        CPUs on each node.
    gpus_per_node
        GPUs on each node.
    minutes
        Time limit, after which the job goes back into the queue, or ends.
    partition
        Where to run; without it, Slurm's default.
    account
        What the time is charged to.
    qos
        Quality of service.
    sbatch
        More options of sbatch, such as [--mem=16G, --exclusive].
    setup
        Lines of shell to run first, such as [module load cuda].
    requeue
        Whether a job that is pre-empted, or out of time, goes on later.
    notice_seconds
        How long before the time limit it is told to save a checkpoint.
    wait_seconds
        How long to wait for the nodes of a job to join its Ray cluster.
    """
    for key, value, least in (
        ("nodes", nodes, 1),
        ("cpus_per_task", cpus_per_task, 1),
        ("gpus_per_node", gpus_per_node, 0),
        ("wait_seconds", wait_seconds, 1),
    ):
        if value < least:
            raise ConfigError(f"cluster.{key}={value:g} must be at least {least}.")
    if not 0 < notice_seconds < 60 * minutes:
        raise ConfigError(
            f"cluster.notice_seconds={notice_seconds} must be more than 0 and less than "
            f"cluster.minutes={minutes}, or the job has no time to run."
        )
    named = {
        "partition": partition,
        "account": account,
        "qos": qos,
        "nodes": nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cpus_per_task,
        "gpus-per-node": gpus_per_node or None,
        "time": minutes,
        "signal": f"B:USR2@{notice_seconds}",  # B: to the batch script alone, not to Ray
    }
    options = [f"--{name}={_quoted(value)}" for name, value in named.items() if value is not None]
    options += ["--requeue" if requeue else "--no-requeue", "--open-mode=append", *sbatch]
    _check_options(sbatch, options)
    allocation = [f"--wait-seconds={wait_seconds:g}", *(["--requeue"] if requeue else [])]
    return _Slurm(tuple(options), tuple(setup), tuple(allocation), partition)


def _check_options(own: Sequence[str], options: Sequence[str]) -> None:
    """Raise `ConfigError` for options that sbatch would misread; `own` are the user's."""
    for option in own:
        if not option.startswith("--"):
            raise ConfigError(
                f"cluster.sbatch: {option!r} is no option of sbatch. Write it in full, such as "
                "'cluster.sbatch=[\"--mem=16G\"]'."
            )
    for option in options:
        if "\n" in option:
            raise ConfigError(
                f"{option!r} has several lines. Set cluster.partition, cluster.account, "
                "cluster.qos and cluster.sbatch to texts of one line."
            )


@dataclass(frozen=True)
class SlurmPlan(Plan):
    """A batch script.

    Parameters
    ----------
    log
        The file that the job prints into; %j stands for its number.
    partition
        Where it is to run, if that is said.
    """

    log: str = field(kw_only=True)
    partition: str | None = field(kw_only=True)


@dataclass(frozen=True)
class _Slurm(Cluster[SlurmPlan]):
    """The options of sbatch, lines of shell, the arguments of `allocation`, and the partition."""

    options: tuple[str, ...]
    setup: tuple[str, ...]
    allocation: tuple[str, ...]
    partition: str | None

    def prepare(self, command: Command) -> SlurmPlan:
        folder = command.directory or Path.cwd()
        log = f"{str(folder).replace('%', '%%')}/slurm-%j.log"
        options = [f"--job-name={_quoted(command.words[0])}", *self.options]
        options += [f"--chdir={_quoted(Path.cwd())}", f"--output={_quoted(log)}"]
        run = [sys.executable, "-m", f"{__package__}.allocation", *self.allocation, "--"]
        run += [sys.executable, "-m", "heliotrope", *command.words]
        lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), ""]
        lines += [*self.setup, f"exec {shlex.join(run)}", ""]
        return SlurmPlan("\n".join(lines), log=log, partition=self.partition)

    def send(self, plan: SlurmPlan) -> Job:
        _check_partition(plan.partition)
        folder = Path(plan.log.replace("%%", "%")).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(
                f"{folder} cannot be made for the log of the job: {error.strerror}. Set "
                "hydra.run.dir, or hydra.sweep.dir, to a directory that the nodes share."
            ) from error
        answer = _asked(["sbatch", "--parsable"], plan.text)
        if answer.returncode:
            raise ConfigError(f"sbatch refuses the job: {_said(answer)}")
        number = answer.stdout.strip().partition(";")[0]  # JOB, or JOB;CLUSTER
        return SlurmJob(number, Path(plan.log.replace("%j", number).replace("%%", "%")))


def _quoted(value: object) -> str:
    return shlex.quote(str(value))


def _asked(command: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm's; `ConfigError` if it is not installed."""
    if shutil.which(command[0]) is None:
        raise ConfigError(
            f"cluster=slurm needs the command {command[0]}, which is not on PATH. Submit from a "
            "machine of the Slurm cluster, or see with dry_run=true what would be sent."
        )
    return subprocess.run(
        command,
        check=False,
        input=text,
        capture_output=True,
        text=True,
        env=_environment(text or ""),
    )


def _environment(script: str) -> dict[str, str]:
    """Return this process's variables without those that overrule an option of `script`.

    If this process is part of a job, the variables of that job are left out, too: what the new job
    does not set anew, such as SLURM_CPU_BIND or SLURM_MEM_PER_CPU, its `srun` would obey.
    """
    options = re.findall(r"^#SBATCH --(?:no-)?([\w-]+)", script, re.MULTILINE)
    named = {name.upper().replace("-", "_") for name in options}
    overruling = {f"SBATCH_{name}" for name in {*named, "NO_REQUEUE", "TIMELIMIT"}}
    if "SLURM_JOB_ID" in os.environ:
        overruling |= {each for each in os.environ if each.startswith(("SLURM_", "SRUN_"))}
        overruling -= _OF_NO_JOB
    return {name: value for name, value in os.environ.items() if name not in overruling}


def _check_partition(partition: str | None) -> None:
    """Raise `ConfigError` with the partitions that there are, if `partition` is none of them."""
    answer = _asked(["sinfo", "--noheader", "--format=%R"])
    if answer.returncode:
        raise ResourceError(f"Slurm does not answer: {_said(answer)}")
    known = sorted(set(answer.stdout.split()))
    for name in (partition or "").split(","):
        if name and name not in known:
            raise ConfigError(
                f"cluster.partition={partition}: Slurm has no partition {name}. There are "
                f"{', '.join(known)}.{closest(name, known)}"
            )


def _said(answer: subprocess.CompletedProcess[str]) -> str:
    return " ".join((answer.stderr or answer.stdout).split()) or f"exit code {answer.returncode}"
