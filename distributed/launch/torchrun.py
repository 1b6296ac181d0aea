"""The `torchrun` launcher: torch's elastic agent, run in this process, starts one process a rank.

It is what the `torchrun` command runs, without the seconds that a second interpreter takes to
import torch, and with this process's own handling of failures and signals.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from heliotrope import errors
from heliotrope.config import Run
from heliotrope.data import Dataset
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.display import Display
from heliotrope.system.allocator import huge_pages
from heliotrope.system.background import in_background
from heliotrope.system.processes import children, end
from heliotrope.system.resources import available_cpus
from heliotrope.system.signals import Stop, code_of

from ..attempt import RunAttempt, TrainingResult, WorkerFailure, WorkerResources
from ..loop.progress import POSITION, shown_from_files
from .base import Launcher
from .failures import reason_of, root_cause
from .resources import returns_large_blocks, worker_resources
from .torchrun_files import ABORT, ANSWER, STEPPED, STOP, TRACKED

__all__ = ["torchrun_launcher"]

_log = logging.getLogger(__name__)


@contextmanager
def torchrun_launcher(run: Run) -> Iterator[Launcher]:
    """Start processes on this machine; for several machines, see `under_torchrun`."""
    cpus, workers = available_cpus(), run.distributed.workers
    resources = worker_resources(run, workers, cpus, cpus // workers, torch.cuda.device_count())
    yield _Torchrun(workers, resources)


class _Torchrun:
    def __init__(self, workers: int, resources: WorkerResources) -> None:
        self._workers = workers
        self._resources = resources

    def gather(self) -> tuple[int, WorkerResources]:
        return self._workers, self._resources

    def launch(
        self,
        attempt: RunAttempt,
        dataset: Dataset,  # noqa: ARG002 - each worker loads it
        display: Display,
        stop: Stop,
    ) -> TrainingResult:
        run_dir = RunDirectory(attempt.directory)
        with (
            tempfile.TemporaryDirectory(prefix="heliotrope-") as scratch,
            shown_from_files(run_dir.metrics, run_dir.path / POSITION, display),
        ):
            # Beside the main thread: there the agent would take the signals for itself.
            agent = in_background(lambda: _run_agent(attempt, scratch))
            _wait_for(agent, Path(scratch), stop)
            return TrainingResult.from_json((Path(scratch) / ANSWER).read_text())


def _wait_for(agent: Future[None], scratch: Path, stop: Stop) -> None:
    """Return or raise as the agent does; pass on to the workers what `stop` hears."""
    try:
        while not agent.done():
            wait([agent], timeout=0.1)
            if stop.asked():
                (scratch / STOP).touch()
                if not (scratch / STEPPED).exists():  # there is nothing to save
                    stop.leave()
        agent.result()
    except BaseException as error:
        (scratch / ABORT).touch()
        while not agent.done():
            if code_of(error) is not None:
                end(children())  # they may not hear it: they import for seconds
            wait([agent], timeout=0.1)  # and the agent may be about to start them
        raise


def _run_agent(attempt: RunAttempt, scratch: str) -> None:
    """Start the workers and return when all have ended well."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=attempt.run.distributed.workers,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # restarts from a checkpoint are ours
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=scratch),
    )
    order = {
        "directory": str(attempt.directory),
        "checkpoint": attempt.checkpoint,
        "start": attempt.start.to_dict(),
        "threads": attempt.resources.threads,
        "device": attempt.resources.device,
        "scratch": scratch,
    }
    with _agent_logged(), _environment(attempt):
        try:
            elastic_launch(config, sys.executable)(
                "-m", f"{__package__}.torchrun_worker", json.dumps(order)
            )
        except ChildFailedError as error:
            _raise_failure(error)


@contextmanager
def _agent_logged() -> Iterator[None]:
    """Let the agent write to the run's log: on the terminal, our one error says it all."""
    agent = logging.getLogger("torch.distributed.elastic")
    agent.handlers, agent.propagate = logging.getLogger().handlers, False
    try:
        yield
    finally:
        agent.handlers, agent.propagate = [], True


@contextmanager
def _environment(attempt: RunAttempt) -> Iterator[None]:
    """Set what the workers inherit: their thread count, and where this very package is.

    Also the address of the MLflow server: config.yaml has it without its password.
    """
    root = Path(__file__).resolve().parents[(__package__ or "").count(".") + 1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    added = {"OMP_NUM_THREADS": str(attempt.resources.threads), "PYTHONPATH": path}
    tracked = attempt.run.tracking.mlflow
    added |= {} if tracked is None else {TRACKED: tracked}
    if returns_large_blocks(attempt.run):
        added |= huge_pages(os.environ)
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _raise_failure(error: ChildFailedError) -> NoReturn:
    """Raise the error of the rank that failed first; the agent ended the others."""
    failures = [
        WorkerFailure(rank, _reason(failure))
        for rank, failure in error.failures.items()
        if failure.exitcode not in (-signal.SIGTERM, 128 + signal.SIGTERM)
    ] or [WorkerFailure(rank, "killed by SIGTERM") for rank in error.failures]
    first = root_cause(failures)
    kind, _, message = first.reason.partition(": ")
    if kind in errors.__all__:
        raise getattr(errors, kind)(message) from first
    raise first from error


def _reason(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"killed by {failure.signal_name()}"
    if isinstance(failure.message, dict):
        return reason_of(str(failure.message["message"]))
    return f"exited with code {failure.exitcode}"
