"""Shares of the machine, failures and their cause, what crosses processes."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import signal
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import distributed.communication.worker_lock as fence_module
from distributed.attempt import TrainingResult, WorkerFailure, WorkerResources
from distributed.communication import worker_lock
from distributed.driver import build_components, drive
from distributed.launch.failures import RankError, reason_of, root_cause
from distributed.launch.resources import fitting_resources, worker_resources
from distributed.loop.threads import useful_threads
from distributed.strategies.speed import peak_operations
from heliotrope.cluster.address import running_cluster
from heliotrope.cluster.connection import Cluster, session
from heliotrope.config import Run
from heliotrope.errors import ResourceError, RunDirectoryError, RunFailedError
from heliotrope.models import build
from heliotrope.runs.events import Progress
from tests.support import compose, fresh_seed, small_task


def _run(*overrides: str) -> Run:
    return compose("distributed", *overrides)


@pytest.fixture(autouse=True)
def no_bound_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own OMP_NUM_THREADS=1 would be one."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_workers_divide_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_resources(_run(), 2, 8, 4, 0) == WorkerResources(threads=4, device="cpu")
    assert worker_resources(_run("distributed.cpus_per_worker=3"), 2, 8, 4, 0).threads == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert worker_resources(_run(), 2, 8, 4, 0) == WorkerResources(threads=2, device="cpu")
    assert next(fitting_resources(_run(), Cluster((8,), (0,)))) == (
        2,
        WorkerResources(threads=2, device="cpu"),
    )


def test_gpus_are_used_where_each_worker_has_one() -> None:
    assert worker_resources(_run(), 2, 8, 4, 2).device == "cuda"
    assert worker_resources(_run(), 2, 8, 4, 1).device == "cpu"
    assert worker_resources(_run("device=cpu"), 2, 8, 4, 2).device == "cpu"


@pytest.mark.parametrize(
    ("overrides", "workers", "said"),
    [
        ([], 9, "distributed.workers=9.*there are 8"),
        (["distributed.cpus_per_worker=5"], 2, "distributed.cpus_per_worker=5.*the 4.*8 CPUs"),
        (["device=cuda"], 2, "distributed.workers=2 with device=cuda.*there are 1"),
    ],
)
def test_more_than_there_is_is_refused_with_the_numbers(
    overrides: list[str], workers: int, said: str
) -> None:
    with pytest.raises(ResourceError, match=said):
        worker_resources(_run(*overrides), workers, 8, 8 // workers, 1)


def test_a_worker_lives_on_one_node() -> None:
    two_nodes = Cluster(node_cpus=(3, 3), node_gpus=(0, 0))
    assert [two_nodes.cpus_per_worker(workers) for workers in (1, 2, 3, 4, 6, 7)] == [
        3,
        3,
        1,
        1,
        1,
        0,
    ]


def test_the_share_is_the_largest_that_fits() -> None:
    draw = random.Random(fresh_seed())
    for _ in range(50):
        nodes = tuple(draw.randint(0, 9) for _ in range(draw.randint(1, 4)))
        workers = draw.randint(1, 8)
        fits = [c for c in range(1, 10) if sum(node // c for node in nodes) >= workers]
        assert Cluster(nodes, (0,) * len(nodes)).cpus_per_worker(workers) == max(fits, default=0)


_FOUR = ((4,), (0,))  # CPUs and GPUs of each node
_SIXTEEN_AND_A_GPU = ((16,), (1,))
_TWO_NODES_ONE_WITH_GPUS = ((16, 2), (0, 2))


@pytest.mark.parametrize(
    ("overrides", "nodes", "free", "found"),
    [
        ([], _FOUR, None, (4, 1, "cpu")),
        ([], _FOUR, (3, 0), (3, 1, "cpu")),
        ([], _FOUR, (0, 0), (1, 1, "cpu")),  # to wait for
        (["distributed.workers=2"], ((8,), (0,)), (7, 0), (2, 3, "cpu")),
        (["distributed.workers=2"], ((8,), (2,)), (8, 1), (2, 4, "cpu")),  # one GPU is held
        (["distributed.workers=2", "device=cuda"], ((8,), (2,)), (8, 1), (2, 1, "cuda")),
        (["distributed.cpus_per_worker=2"], _FOUR, None, (2, 2, "cpu")),
        (["distributed.cpus_per_worker=2"], _FOUR, (3, 0), (1, 2, "cpu")),
        ([], _SIXTEEN_AND_A_GPU, None, (1, 16, "cuda")),
        (["device=cpu"], _SIXTEEN_AND_A_GPU, None, (4, 4, "cpu")),
        (["distributed.workers=[2,4]"], _SIXTEEN_AND_A_GPU, None, (4, 4, "cpu")),
        ([], _TWO_NODES_ONE_WITH_GPUS, None, (2, 1, "cuda")),
        (["device=cuda"], _TWO_NODES_ONE_WITH_GPUS, None, (2, 1, "cuda")),
        (["device=cuda"], _TWO_NODES_ONE_WITH_GPUS, (10, 1), (1, 2, "cuda")),
        (["device=cuda", "distributed.workers=2"], _TWO_NODES_ONE_WITH_GPUS, None, (2, 1, "cuda")),
    ],
)
def test_an_elastic_run_takes_what_others_leave_and_stays_on_gpus(
    overrides: list[str],
    nodes: tuple[tuple[int, ...], tuple[int, ...]],
    free: tuple[int, int] | None,
    found: tuple[int, int, str],
) -> None:
    run = _run("distributed.workers=[1,4]", *overrides)
    workers, share = next(fitting_resources(run, Cluster(*nodes), free))
    assert (workers, share.threads, share.device) == found


def test_fewer_workers_with_fewer_cpus_come_after_more() -> None:
    run = _run("distributed.workers=[1,3]")
    choices = [
        (n, share.threads) for n, share in fitting_resources(run, Cluster((4, 4), (0, 0)), (5, 0))
    ]
    assert choices == [(3, 1), (2, 2), (2, 1), (1, 4), (1, 2), (1, 1)]


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [
        (["distributed.workers=3"], (3, 1, "cpu")),
        (["distributed.workers=1", "distributed.cpus_per_worker=8"], (1, 8, "cpu")),
        (["distributed.workers=2", "device=cuda"], (2, 1, "cuda")),
    ],
)
def test_what_a_cluster_does_not_have_is_asked_of_its_autoscaler_alone(
    overrides: list[str], asked: tuple[int, int, str]
) -> None:
    run, two = _run(*overrides), Cluster(node_cpus=(2,), node_gpus=(0,))
    [(workers, share)] = fitting_resources(run, replace(two, can_grow=True))
    assert (workers, share.threads, share.device) == asked
    with pytest.raises(ResourceError, match=r"distributed\."):
        next(fitting_resources(run, two))


def test_gpus_without_a_cpu_beside_them_are_named() -> None:
    run = _run("distributed.workers=[1,4]", "device=cuda", "distributed.cpus_per_worker=1")
    with pytest.raises(ResourceError, match=r"device=cuda needs a GPU.*there are 0"):
        next(fitting_resources(run, Cluster((4, 0), (0, 2))))


def test_an_elastic_run_that_finds_no_room_after_an_attempt_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run("distributed.workers=[1,2]", "model.hidden=[2]")
    stopped = TrainingResult(1, Progress(), {}, None, 0.0, 0.0, 0.0, 0, stopped=True)

    class Launcher:
        def __init__(self, attempts: int) -> None:
            self.attempts = attempts

        def gather(self) -> tuple[int, WorkerResources]:
            self.attempts -= 1
            if self.attempts < 0:
                raise ResourceError("Others hold the cluster.")
            return 1, WorkerResources(1, "cpu")

        def launch(self, *_: object) -> TrainingResult:
            return stopped

    with pytest.raises(ResourceError, match="Others hold") as none_began:
        drive(run, tmp_path / "a", build_components(run), Launcher(0), lambda: None)
    assert none_began.value.exit_code == 2
    with pytest.raises(RunFailedError, match=r"Others hold.*resume=true hydra\.run\.dir") as failed:
        drive(run, tmp_path / "b", build_components(run), Launcher(1), lambda: None)
    assert failed.value.exit_code == 1


def test_gpus_are_shared_equally_unless_said_otherwise() -> None:
    cluster = Cluster(node_cpus=(8,), node_gpus=(2,))
    shares = [cluster.gpus_per_worker("gpus", workers, None) for workers in (1, 2, 3, 4, 5, 8)]
    assert shares == [1.0, 1.0, 0.5, 0.5, 1 / 3, 0.25]
    assert cluster.gpus_per_worker("gpus", 4, 0.25) == 0.25
    assert cluster.gpus_per_worker("gpus", 6, 1 / 3) == 1 / 3
    assert cluster.gpus_per_worker("gpus", 4, 0) == 0
    for workers, wanted, room in ((3, 1, 2), (3, 0.6, 2), (2, 2, 1)):
        with pytest.raises(ResourceError, match=rf"gpus={wanted} leaves room for {room} worker"):
            cluster.gpus_per_worker("gpus", workers, wanted)
    with pytest.raises(ResourceError, match=r"gpus=1\.5 must be a whole number"):
        cluster.gpus_per_worker("gpus", 1, 1.5)


def test_the_cause_is_the_rank_that_did_not_merely_lose_its_peer() -> None:
    lost = WorkerFailure(0, "RuntimeError: [gloo/transport/tcp/pair.cc:537] Connection closed")
    died = WorkerFailure(1, "killed by SIGKILL")
    assert root_cause([lost, died]) is died
    assert root_cause([died, lost]) is died
    assert root_cause([lost, replace_rank(lost, 1)]) is lost


def test_what_a_rank_raised_crosses_to_the_driver_in_its_own_words() -> None:
    error = pickle.loads(pickle.dumps(RankError("KeyError: 'x' in mine.py, line 3")))  # noqa: S301
    assert reason_of(f"{type(error).__name__}: {error}") == "KeyError: 'x' in mine.py, line 3"
    assert reason_of("RankError: MemoryError").startswith("ran out of memory: MemoryError")


def replace_rank(failure: WorkerFailure, rank: int) -> WorkerFailure:
    return WorkerFailure(rank, failure.reason)


def test_what_rank_0_says_crosses_processes_exactly() -> None:
    draw = np.random.default_rng(fresh_seed())
    trained = TrainingResult(
        epochs=3,
        counts=Progress(steps=9, examples_seen=70, bytes_up=5, bytes_down=6),
        final={"test": draw.normal(size=12)},
        target={"metric": "test/accuracy", "value": 0.9, "reached": False},
        seconds=float(draw.random()),
        train_seconds=float(draw.random()),
        startup_seconds=float(draw.random()),
        peak_rss_bytes=2**40,
    )
    back = TrainingResult.from_json(json.dumps(json.loads(trained.to_json())))
    assert np.array_equal(back.final["test"], trained.final["test"])
    assert replace(back, final={}) == replace(trained, final={})


@pytest.mark.parametrize(
    ("gpu", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA A100-SXM4-40GB", "fp32", 19.5e12),
        ("NVIDIA A100 80GB PCIe", "bf16", 312e12),
        ("NVIDIA H100 NVL", "bf16", 835.5e12),
        ("NVIDIA H200", "bf16", 989.4e12),
        ("NVIDIA H200 NVL", "bf16", 835.5e12),
        ("NVIDIA B200", "bf16", 2250e12),
        ("NVIDIA B200", "fp32", None),
        ("NVIDIA L40S", "fp16", 362e12),
        ("NVIDIA L40", "fp32", 90.5e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA GB200", "bf16", None),
        ("NVIDIA RTX A1000", "bf16", None),
        ("Some other GPU", "bf16", None),
    ],
)
def test_the_peak_is_that_of_the_gpu_where_it_is_known(
    gpu: str, precision: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: gpu)
    assert peak_operations(torch.device("cuda", 0), precision) == peak
    assert peak_operations(torch.device("cpu"), precision) is None


def test_an_attempt_waits_for_the_workers_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence_module, "_PATIENCE", 0.1)
    with (
        worker_lock.held(tmp_path),
        worker_lock.held(tmp_path),
        pytest.raises(RunDirectoryError, match=str(tmp_path)),
    ):
        worker_lock.wait_until_clear(tmp_path, pytest.fail)
    worker_lock.wait_until_clear(tmp_path, pytest.fail)


_AUTOSCALER = "RAY_enable_autoscaler_v2"


class _NoRay(ModuleType):
    """Stands in for Ray: notes what it is asked, and puts in a signal handler as Ray does."""

    def __init__(self, running: bool) -> None:
        super().__init__("ray")
        self.running = running
        self.calls: list[str] = []
        self.autoscaler: str | None = None  # that `init` found in the environment

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **_arguments: object) -> None:
        self.calls.append("init")
        self.autoscaler = os.environ.get(_AUTOSCALER)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"Alive": False, "Resources": {"CPU": 64.0}}
        return [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}, gone]

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def test_ray_is_started_and_stopped_by_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ours = signal.getsignal(signal.SIGTERM)
    ray = _NoRay(running=False)
    with contextlib.suppress(RuntimeError), session(ray) as cluster:
        assert (cluster.cpus, cluster.gpus) == (4, 1)
        assert signal.getsignal(signal.SIGTERM) is ours
        raise RuntimeError
    assert ray.calls == ["init", "shutdown"]


@pytest.mark.parametrize(("theirs", "chosen"), [(None, "1"), ("0", "0")])
def test_ray_is_started_with_the_autoscaler_that_stops_at_once_or_the_users(
    theirs: str | None, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(_AUTOSCALER, raising=False)
    if theirs is not None:
        monkeypatch.setenv(_AUTOSCALER, theirs)
    ray = _NoRay(running=False)
    with session(ray):
        assert ray.autoscaler == chosen
        assert os.environ.get(_AUTOSCALER) == theirs


def test_no_garbage_refers_to_ray_while_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = _NoRay(running=False)

    class Reference:
        """Is kept alive by itself, as a failure is by the frames of its traceback."""

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            ray.calls.append("freed")

    with session(ray):
        Reference()
    assert ray.calls == ["init", "freed", "shutdown"]


def test_ray_that_was_running_is_left_alone() -> None:
    ray = _NoRay(running=True)
    with session(ray):
        pass
    assert ray.calls == []


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379", "host:port"])
def test_a_cluster_that_does_not_answer_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ResourceError, match=f"RAY_ADDRESS={address}"), session(_NoRay(False)):
        pass


def test_the_address_of_a_ray_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://host:10001")
    with pytest.raises(ResourceError, match=r"RAY_ADDRESS=ray://host:10001.*HOST:PORT"):
        running_cluster(_NoRay(False))


def test_auto_where_no_cluster_runs_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # of this machine
    with pytest.raises(ResourceError, match="RAY_ADDRESS=auto, but no Ray cluster runs"):
        running_cluster(_NoRay(False))


def test_small_steps_use_one_thread_and_large_ones_their_share() -> None:
    task = small_task(classes=10, shape=(1, 28, 28))
    small = build(compose("distributed", "model.hidden=[32]").model, task, 0)
    large = build(compose("distributed", "model=cnn").model, task, 0)
    assert useful_threads(small, task, 32, most=8) == 1
    assert useful_threads(large, task, 64, most=8) == 8
    shares = [useful_threads(small, task, 2**power, most=8) for power in range(20)]
    assert shares == sorted(shares)
    assert small.training
