"""The processes of a sweep on Ray: each runs one job after the other.

The caller passes Ray's module: this package does not import it.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from heliotrope.cluster.environment import DriverEnvironment
from heliotrope.commands.guarded import guarded
from heliotrope.config import Mode, Run
from heliotrope.errors import HeliotropeError
from heliotrope.modes import mode_module
from heliotrope.runs.clock import clock_from_now
from heliotrope.system.process_exit import brief
from heliotrope.system.signals import code_of, held_back

__all__ = ["JobWorker", "Share", "Workers"]

# What `run_job` of a mode imports when it is called, beside what draws its report.
_LATE: dict[Mode, str] = {"distributed": "driver", "federated": "simulation"}


@dataclass(frozen=True)
class Share:
    """How many jobs run at a time, and what each has.

    Parameters
    ----------
    jobs
        At a time.
    threads
        CPUs of each.
    gpus
        Of each, perhaps a part of one.
    placed
        Whether the jobs let Ray place their workers, who have these CPUs and GPUs.
    """

    jobs: int
    threads: int
    gpus: float
    placed: bool


class JobWorker:
    """A process that runs one job after the other; what its imports cost is paid once."""

    def __init__(
        self, ray: ModuleType, environment: DriverEnvironment, mode: Mode, threads: int
    ) -> None:
        given = os.environ.get("OMP_NUM_THREADS", "")
        own = min(threads, int(given)) if given.isdecimal() and int(given) else threads
        environment.enter()
        os.environ["OMP_NUM_THREADS"] = str(own)  # before torch is there
        # What starts Ray holds signals back, and its processes inherit that.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self._node = str(ray.get_runtime_context().get_node_id())
        self._run_job: Callable[[Run, Path], None] = mode_module(mode, "job").run_job
        mode_module(mode, _LATE[mode])
        importlib.import_module("matplotlib.backends.backend_svg")

    def process(self) -> tuple[str, int]:
        """Return the id of the node that this process is on, and its own."""
        return self._node, os.getpid()

    def do(self, run: Run, directory: Path) -> tuple[int, str]:
        """Run a job; return its exit code, and what it has written to the standard error."""
        errors = io.StringIO()
        with redirect_stderr(errors), redirect_stdout(io.StringIO()), clock_from_now():
            try:
                code = guarded(lambda: self._run_job(run, directory), interruptible=False)
            except (KeyboardInterrupt, SystemExit) as error:
                code = code_of(error) or HeliotropeError.exit_code
        return code, errors.getvalue()


class Workers:
    """The processes: as many as jobs run at a time, each started when it is first needed."""

    def __init__(
        self, ray: ModuleType, environment: DriverEnvironment, mode: Mode, share: Share
    ) -> None:
        self._ray = ray
        cpus, gpus = (0, 0.0) if share.placed else (share.threads, share.gpus)
        kind: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(JobWorker)
        start = kind.options(**environment.options).remote
        self._new: Callable[[], Any] = lambda: start(ray, environment, mode, share.threads)
        self._idle: list[Any] = []
        self._processes: dict[Any, Future[tuple[str, int]]] = {}

    def prepare(self, count: int) -> None:
        """Have `count` actors that wait for a job."""
        for _ in range(count):
            self._idle.append(self._started())

    def free(self) -> Any:
        """Return an actor that has no job."""
        return self._idle.pop(0) if self._idle else self._started()

    def _started(self) -> Any:
        with held_back():
            worker = self._new()
            self._processes[worker] = worker.process.remote().future()
        return worker

    def start(self, worker: Any, run: Run, directory: Path) -> Future[tuple[int, str]]:
        """Give a job to an actor."""
        with held_back():
            answer: Future[tuple[int, str]] = worker.do.remote(run, directory).future()
        return answer

    def release(self, worker: Any, *, alive: bool) -> None:
        """Take an actor back that has done its job; one that is not `alive` is replaced."""
        if alive:
            self._idle.append(worker)
        else:
            del self._processes[worker]

    def terminate(self, workers: Sequence[Any]) -> None:
        """Send SIGTERM to the processes of actors; one that is not up yet is ended."""
        here = str(self._ray.get_runtime_context().get_node_id())
        for worker in workers:
            up = self._processes[worker]
            if not up.done() or up.exception() is not None:
                self._ray.kill(worker)
                continue
            node, process = up.result()
            if node == here:
                os.kill(process, signal.SIGTERM)
            else:
                self._send(node, process)

    def _send(self, node: str, process: int) -> None:
        """Send SIGTERM to a process of another node of the cluster."""
        module = f"{self._ray.__name__}.util.scheduling_strategies"
        there = importlib.import_module(module).NodeAffinitySchedulingStrategy(node, soft=False)
        with held_back():
            send = self._ray.remote(num_cpus=0)(os.kill).options(scheduling_strategy=there)
            send.remote(process, signal.SIGTERM)

    def close(self) -> None:
        """End all processes."""
        with brief():
            for worker in self._processes:
                self._ray.kill(worker)
        self._processes.clear()
