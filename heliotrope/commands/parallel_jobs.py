"""Jobs of a sweep, several at a time: in processes on Ray, which stay for one job after the other.

Each process has an equal share of the CPUs and GPUs. Jobs that let Ray place their workers have
none themselves: their workers do. The caller passes Ray's module: this package does not import it.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from heliotrope.cluster.connection import Cluster, session
from heliotrope.cluster.environment import DriverEnvironment, driver_environment
from heliotrope.commands.guarded import guarded
from heliotrope.commands.output import say
from heliotrope.config import Mode, Run
from heliotrope.config.workers import worker_range
from heliotrope.errors import ConfigError, HeliotropeError
from heliotrope.modes import mode_module
from heliotrope.runs.clock import clock_from_now
from heliotrope.system.process_exit import brief
from heliotrope.system.resources import check_cpus
from heliotrope.system.signals import Stop, code_of, held_back, signals_heard

__all__ = ["JobWorker", "PlannedJob", "Share", "run_in_parallel", "share_of"]

_LOOK_SECONDS = 0.1  # between two looks whether a signal has come


@dataclass(frozen=True)
class PlannedJob:
    """A job of a sweep: its number, its checked config, and the directory that it has."""

    number: int
    run: Run
    directory: Path


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


def run_in_parallel(
    ray: ModuleType,
    mode: Mode,
    jobs: Sequence[PlannedJob],
    ended: Callable[[Path, int], None],
) -> None:
    """Run all jobs; `ended` is told the directory and exit code of each.

    A job that fails, or whose process dies, does not stop the others. SIGINT or SIGTERM ends those
    under way with their checkpoints, and is then raised.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("sweep.parallel cannot be used under torchrun. Set sweep.parallel=1.")
    with session(ray) as cluster:
        share = share_of(jobs, mode, cluster)
        environment = driver_environment(jobs[0].run.cluster, inherited=not cluster.can_grow)
        workers = _Workers(ray, environment, mode, share)
        try:
            with signals_heard() as stop:
                _run_all(deque(jobs), workers, share, mode, ended, stop)
                if stop.asked():
                    stop.leave()
        finally:
            workers.close()


def share_of(jobs: Sequence[PlannedJob], mode: Mode, cluster: Cluster) -> Share:
    """Return how many jobs run at a time, as `sweep.parallel` says, and the share of each.

    Raises `ResourceError` if that many never fit.
    """
    wanted = jobs[-1].run.sweep.parallel
    placed = any(_placed_by_ray(job.run, mode) for job in jobs)
    least = max(_least_cpus(job.run, mode) for job in jobs)
    if wanted == "auto":
        count = max(1, min(len(jobs), cluster.cpus // least))
    else:
        if not cluster.can_grow:
            check_cpus("sweep.parallel", wanted, least, cluster.cpus)
        count = min(len(jobs), wanted)
    on_gpu = cluster.gpus > 0 and any(job.run.device != "cpu" for job in jobs)
    gpus = cluster.gpus_per_worker("sweep.parallel", count, None) if on_gpu else 0.0
    return Share(count, max(least, cluster.cpus_per_worker(count)), gpus, placed)


def _run_all(
    waiting: deque[PlannedJob],
    workers: _Workers,
    share: Share,
    mode: Mode,
    ended: Callable[[Path, int], None],
    stop: Stop,
) -> None:
    busy: dict[Future[tuple[int, str]], tuple[PlannedJob, Any, float]] = {}
    told = False
    while busy or (waiting and not stop.asked()):
        while waiting and len(busy) < share.jobs and not stop.asked():
            job = waiting.popleft()
            say(f"[{job.number}] begins in {job.directory}")
            worker = workers.free()
            answer = workers.start(worker, _placed(job.run, mode, share), job.directory)
            busy[answer] = (job, worker, time.monotonic())
        if stop.asked() and not told:
            told = True
            workers.terminate([worker for _, worker, _ in busy.values()])
        done, _ = wait(busy, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
        for answer in done:
            job, worker, began = busy.pop(answer)
            code, errors = _answered(answer, stop)
            workers.release(worker, alive=answer.exception() is None)
            sys.stderr.write("".join(f"[{job.number}] {line}\n" for line in errors.splitlines()))
            how = "completed" if code == 0 else "stopped" if stop.asked() else "failed"
            say(f"[{job.number}] {how} after {time.monotonic() - began:.1f} s")
            ended(job.directory, code)


def _answered(answer: Future[tuple[int, str]], stop: Stop) -> tuple[int, str]:
    """Return a job's exit code and errors, also if its process has died."""
    error = answer.exception()
    if error is None:
        return answer.result()
    if stop.asked():  # it may end itself at once, having nothing to save
        return 128 + signal.SIGTERM, ""
    said, *_ = (str(error).strip() or type(error).__name__).splitlines()
    return HeliotropeError.exit_code, f"error: its process died: {said}"


class _Workers:
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

    def free(self) -> Any:
        """Return an actor that has no job."""
        if self._idle:
            return self._idle.pop()
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


def _placed_by_ray(run: Run, mode: Mode) -> bool:
    return (run.distributed.launcher if mode == "distributed" else run.federated.pool) == "ray"


def _least_cpus(run: Run, mode: Mode) -> int:
    """Return how many CPUs a job needs at least: those of its workers, if Ray places them."""
    each = getattr(run, mode).cpus_per_worker or 1
    if not _placed_by_ray(run, mode):
        return int(each)
    workers = worker_range(run.distributed.workers)[0] if mode == "distributed" else 0
    return int(each) * (workers or run.federated.workers)


def _placed(run: Run, mode: Mode, share: Share) -> Run:
    """Return the run, whose workers on Ray have an equal part of the job's share of the CPUs."""
    cfg: Any = getattr(run, mode)
    if not _placed_by_ray(run, mode) or cfg.cpus_per_worker is not None:
        return run
    workers = worker_range(cfg.workers)[1]
    own = replace(cfg, cpus_per_worker=max(1, share.threads // workers))
    return replace(run, **{mode: own})
