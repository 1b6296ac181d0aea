"""Jobs of a sweep, several at a time: in processes on Ray, which stay for one job after the other.

Each process has an equal share of the CPUs and GPUs. Jobs that let Ray place their workers have
none themselves: their workers do. The caller passes Ray's module: this package does not import it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from heliotrope.cluster.connection import Cluster, session
from heliotrope.cluster.environment import driver_environment
from heliotrope.commands.job_processes import Share, Workers
from heliotrope.commands.output import say
from heliotrope.config import Mode, Run
from heliotrope.config.workers import worker_range
from heliotrope.errors import ConfigError, HeliotropeError
from heliotrope.system.resources import check_cpus
from heliotrope.system.signals import Stop, signals_heard

__all__ = ["ParallelJobs", "PlannedJob", "share_of"]

_LOOK_SECONDS = 0.1  # between two looks whether a signal has come


@dataclass(frozen=True)
class PlannedJob:
    """A job of a sweep: what it is called, its checked config, and the directory that it has."""

    name: str
    run: Run
    directory: Path


class ParallelJobs:
    """Jobs of a sweep, several at a time; a context manager, which ends Ray and the processes."""

    def __init__(self, ray: Callable[[], ModuleType], mode: Mode) -> None:
        self._ray, self._mode = ray, mode
        self._held = ExitStack()
        self._cluster: Cluster | None = None
        self._share: Share | None = None
        self._workers: Workers | None = None
        self._failed: Exception | None = None

    def __enter__(self) -> ParallelJobs:
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)

    def prepare(self, run: Run, count: int) -> None:
        """Start Ray, and processes for `count` jobs such as `run`, before all are composed.

        They import torch meanwhile. What is wrong is raised by `run`.
        """
        if self._cluster is not None or self._failed is not None:
            return
        try:
            self._open([run] * count)
            assert self._share is not None
            assert self._workers is not None
            self._workers.prepare(self._share.jobs)
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._failed = error

    def run(self, jobs: Sequence[PlannedJob], ended: Callable[[Path, int], None]) -> None:
        """Run all jobs; `ended` is told the directory and exit code of each.

        A job that fails, or whose process dies, does not stop the others. SIGINT or SIGTERM ends
        those under way with their checkpoints, and is then raised.
        """
        if self._failed is not None:
            raise self._failed
        self._open([job.run for job in jobs])
        assert self._share is not None
        assert self._workers is not None
        with signals_heard() as stop:
            _run_all(deque(jobs), self._workers, self._share, self._mode, ended, stop)
            if stop.asked():
                stop.leave()

    def _open(self, runs: Sequence[Run]) -> None:
        """Be connected to Ray, with processes of the share that each of `runs` has."""
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise ConfigError("sweep.parallel cannot be used under torchrun. Set sweep.parallel=1.")
        ray = self._ray()
        if self._cluster is None:
            self._cluster = self._held.enter_context(session(ray))
        share = share_of(runs, self._mode, self._cluster)
        if self._workers is not None and share == self._share:
            return
        if self._workers is not None:  # those that were prepared have another share
            self._workers.close()
        inherited = not self._cluster.can_grow
        environment = driver_environment(runs[0].cluster, inherited=inherited)
        self._share, self._workers = share, Workers(ray, environment, self._mode, share)
        self._held.callback(self._workers.close)


def share_of(runs: Sequence[Run], mode: Mode, cluster: Cluster) -> Share:
    """Return how many of `runs` go on at a time, as `sweep.parallel` says, and the share of each.

    Raises `ResourceError` if that many never fit.
    """
    wanted = runs[-1].sweep.parallel
    placed = any(_placed_by_ray(run, mode) for run in runs)
    least = max(_least_cpus(run, mode) for run in runs)
    if wanted == "auto":
        count = max(1, min(len(runs), cluster.cpus // least))
    else:
        if not cluster.can_grow:
            check_cpus("sweep.parallel", wanted, least, cluster.cpus)
        count = min(len(runs), wanted)
    on_gpu = cluster.gpus > 0 and any(run.device != "cpu" for run in runs)
    gpus = cluster.gpus_per_worker("sweep.parallel", count, None) if on_gpu else 0.0
    return Share(count, max(least, cluster.cpus_per_worker(count)), gpus, placed)


def _run_all(
    waiting: deque[PlannedJob],
    workers: Workers,
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
            say(f"[{job.name}] begins in {job.directory}")
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
            sys.stderr.write("".join(f"[{job.name}] {line}\n" for line in errors.splitlines()))
            how = "completed" if code == 0 else "stopped" if stop.asked() else "failed"
            say(f"[{job.name}] {how} after {time.monotonic() - began:.1f} s")
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
