"""Parity 1 to 7 for whole runs of the exemplars' experiments, made small.

What of it models and tasks do by themselves, with random examples, is in test_exemplar_models.py
and test_tasks.py; item 9, on CPUs, is "by autograd" there.
"""

from __future__ import annotations

import functools
import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import distributed.job
import federated.job
from distributed.loop.example_order import permutation
from heliotrope import config, plugin_loading
from heliotrope.config import Mode, Run
from heliotrope.data import Dataset, load
from heliotrope.evaluation import evaluate
from heliotrope.models import build
from heliotrope.tasks import Task, example_weights, task_of
from tests.distributed_runs import INLINE, RAY, assert_close, result_of
from tests.support import (
    ROOT,
    assert_same_tensors,
    compose,
    environment,
    events_of,
    fresh_seed,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("no_report", "few_examples")

# Small, with every client in every round.
_TEXTS = ("experiment=spam", "data.vocabulary=99", "data.max_words=12")
_PLAYS = (
    "experiment=shakespeare",
    "data.min_characters=22000",
    "data.length=40",
    "federated.clients_per_round=3",
)
_FEW = ROOT / "tests" / "few_examples.py"
SMALL: dict[str, tuple[str, ...]] = {
    "heart": ("experiment=heart",),
    "heart-mlp": ("experiment=heart", "model=mlp", "model.hidden=[5]", "model.dropout=0.2"),
    "diabetes": ("experiment=diabetes",),
    "spam": (*_TEXTS, "model.width=4"),
    "spam-gru": (*_TEXTS, "model=gru", "model.width=3", "model.hidden=4"),
    "shakespeare": (*_PLAYS, "model.width=3", "model.hidden=4", "model.dropout=0.2"),
    "shakespeare-gpt": (*_PLAYS, "model=gpt", "model.width=4", "model.heads=2", "model.layers=1"),
    "movielens": (
        "experiment=movielens",
        f"plugins=[{_FEW}]",
        "data=few_ratings",
        "model.width=3",
        "distributed.batch_size=20",
        "federated.clients_per_round=5",
        "federated.batch_size=4",
        "federated.lr_horizon=3",
    ),
    "emoji": (
        "experiment=emoji",
        f"plugins=[{_FEW}]",
        "data=few_emoji",
        "model.channels=[2]",
        "model.width=4",
        "distributed.batch_size=20",
        "federated.batch_size=9",
    ),
}
_NOT_STACKED = ("emoji",)  # whose padding would be among the negatives: see test_contrastive.py
# Of item 3, a full-batch step of all clients. A picture's loss depends on the others of its batch,
# which is a client's; and a step of a user's own vector is one on the mean of that user's ratings.
_NO_COMMON_STEP = ("emoji", "movielens")


def _cases(*quick: str) -> list[Any]:
    """Return all of `SMALL`, of which only the quick ones are in the default suite."""
    return [
        pytest.param(name, marks=() if name in quick else pytest.mark.slow, id=name)
        for name in SMALL
    ]


_SOME = _cases("heart", "diabetes", "movielens", "emoji")
_FEWER = _cases("heart", "movielens", "emoji")
_ON_RAY = _cases("emoji")  # where the workers exchange more than gradients
# Steps that are the same to rounding stay so: Adam makes much of a gradient that is nearly 0.
_PLAIN = ("optimizer=sgd", "optimizer.lr=0.1", "optimizer.weight_decay=0.001")
_THREADS = {
    "distributed": "distributed.cpus_per_worker=1",
    "federated": "federated.cpus_per_worker=1",
}
_LENGTH = {"distributed": "distributed.epochs", "federated": "federated.rounds"}
_JOBS: dict[str, Callable[[Run, Path], None]] = {
    "distributed": distributed.job.run_job,
    "federated": federated.job.run_job,
}


def _settings(mode: Mode, name: str, length: int, *more: str) -> tuple[str, ...]:
    batch = ("distributed.batch_size=100",) if mode == "distributed" else ()
    start = INLINE if mode == "distributed" and RAY[0] not in more else ()
    return (*batch, *SMALL[name], _THREADS[mode], f"{_LENGTH[mode]}={length}", *start, *more)


def _train(directory: Path, mode: Mode, name: str, length: int, *more: str) -> Path:
    _JOBS[mode](compose(mode, *_settings(mode, name, length, *more)), directory)
    return directory


@pytest.fixture
def few_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the plug-in that `SMALL` names."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    plugin_loading.load([str(_FEW)])
    config.register()


@functools.cache
def _loaded(name: str) -> tuple[Run, Dataset, Task]:
    run = compose("distributed", *SMALL[name], *_PLAIN)
    dataset = load(run.data, run.seed)
    return run, dataset, task_of(dataset, run)


@pytest.mark.parametrize("name", SMALL)
def test_metrics_over_any_partition_are_those_over_the_whole(name: str) -> None:
    draw = np.random.default_rng(fresh_seed())
    run, dataset, task = _loaded(name)
    model, count = build(run.model, task, int(draw.integers(2**31))), len(dataset.test)
    whole = evaluate(model, task, dataset.test, count)
    order = torch.from_numpy(draw.permutation(count))
    ends = np.sort(draw.integers(0, count, 5)).tolist()
    every = dataset.test.take(order)  # in which the parts follow one another
    measured = [
        evaluate(
            model, task, dataset.test, 37, part, lambda _, f=first: (task.call(model, every), f)
        )
        for part, first in zip(order.tensor_split(ends), (0, *ends), strict=True)
    ]
    merged = functools.reduce(operator.add, measured)
    assert merged.count == whole.count == count
    for number, value in whole.compute().items():
        # A row's outputs differ in the last bits with the rows beside it: it may change its bin.
        assert merged.compute()[number] == pytest.approx(value, rel=1e-4, abs=1e-4), number


@pytest.mark.parametrize("name", _SOME)
def test_one_worker_is_the_plain_loop(name: str, tmp_path: Path) -> None:
    without = ("model.dropout=0.0",) if any("dropout" in each for each in SMALL[name]) else ()
    _train(tmp_path, "distributed", name, 1, *_PLAIN, *without)
    run, dataset, task = _loaded(name)
    run = compose("distributed", *_settings("distributed", name, 1, *_PLAIN, *without))
    model = build(run.model, task, run.seed)
    decay = 0.001 + run.loss.l2  # of plain SGD, both are one
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)
    weights = example_weights(task, dataset.train)
    for rows in permutation(run.seed, 1, len(dataset.train)).split(run.distributed.batch_size):
        batch = dataset.train.take(rows)
        optimizer.zero_grad()
        losses = task.losses(task.call(model, batch), batch)
        (losses.sum() / weights[rows].sum()).backward()
        optimizer.step()
    assert_close(model.state_dict(), tmp_path)


@pytest.mark.parametrize("name", _ON_RAY)
def test_two_ray_workers_are_one_with_the_doubled_batch(
    name: str, ray_session: object, tmp_path: Path
) -> None:
    one = _train(tmp_path / "one", "distributed", name, 2, *_PLAIN)
    two = _train(tmp_path / "two", "distributed", name, 2, *_PLAIN, *RAY)
    assert_close(one, two)
    for number, value in result_of(one)["metrics"].items():
        assert result_of(two)["metrics"][number] == pytest.approx(value, rel=1e-3, abs=1e-3), number


@pytest.mark.parametrize("name", [each for each in _SOME if each.id not in _NO_COMMON_STEP])
def test_a_full_batch_step_of_all_clients_is_a_data_parallel_step(
    name: str, tmp_path: Path
) -> None:
    without = ("model.dropout=0.0",) if any("dropout" in each for each in SMALL[name]) else ()
    everything = ("distributed.batch_size=10000", *_PLAIN, *without)
    one = _train(tmp_path / "one", "distributed", name, 2, *everything)
    everyone = ("federated.batch_size=null", "federated.local_epochs=1", *_PLAIN, *without)
    if "experiment=spam" in SMALL[name]:
        everyone += ("federated.clients_per_round=20",)
    assert_close(one, _train(tmp_path / "all", "federated", name, 2, *everyone))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_our_engine_gives_what_flowers_simulation_gives(name: str, tmp_path: Path) -> None:
    # Flower's own loop knows of no schedule of the clients' rate.
    settings = [*_PLAIN, "federated/strategy=flower_fedavg", "federated.lr_schedule=constant"]
    settings.append("federated.lr_horizon=null")
    if "experiment=spam" in SMALL[name]:
        settings.append("federated.partition.clients=10")
    ours = _train(tmp_path / "ours", "federated", name, 2, *settings)
    run = compose("federated", *_settings("federated", name, 2, *settings))
    config = tmp_path / "theirs.yaml"
    config.write_text(OmegaConf.to_yaml(OmegaConf.structured(run)))
    telemetry = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "parity" / "flower_oracle.py", tmp_path, config],
        cwd=tmp_path,
        env={**environment(), **telemetry},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    theirs = np.load(tmp_path / "theirs.npz")
    for key, value in weights_of(ours).items():
        np.testing.assert_allclose(value.numpy(), theirs[key], rtol=2e-4, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("name", _SOME)
def test_stacked_reduced_and_spread_clients_are_those_trained_one_by_one(
    name: str, tmp_path: Path
) -> None:
    one = _train(
        tmp_path / "one",
        "federated",
        name,
        2,
        *_PLAIN,
        "federated.client_training=sequential",
        "federated.reduce=none",
    )
    ways = [("federated.client_training=captured", "federated.reduce=worker")]
    if name not in _NOT_STACKED:
        ways.append(("federated.client_training=batched",))
    for number, way in enumerate(ways):
        assert_close(one, _train(tmp_path / str(number), "federated", name, 2, *_PLAIN, *way))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_clients_on_ray_are_those_in_this_process(
    name: str, ray_session: object, tmp_path: Path
) -> None:
    one = _train(tmp_path / "one", "federated", name, 2, *_PLAIN)
    on_ray = ("federated.pool=ray", "federated.workers=2")
    assert_close(one, _train(tmp_path / "two", "federated", name, 2, *_PLAIN, *on_ray))


@pytest.mark.parametrize("mode", _JOBS)
@pytest.mark.parametrize("name", _FEWER)
def test_a_run_continued_is_one_in_one_go(name: str, mode: Mode, tmp_path: Path) -> None:
    each = f"{mode}.checkpoint_every=1"
    whole = _train(tmp_path / "whole", mode, name, 3, each)
    parts = _train(tmp_path / "parts", mode, name, 1, each)
    _train(parts, mode, name, 3, each, "resume=true")
    assert_same_tensors(weights_of(whole), weights_of(parts))


@pytest.mark.parametrize("mode", _JOBS)
@pytest.mark.parametrize("name", _FEWER)
def test_the_same_command_gives_the_same_digits(name: str, mode: Mode, tmp_path: Path) -> None:
    runs = [_train(tmp_path / str(number), mode, name, 2) for number in range(2)]
    assert_same_tensors(*map(weights_of, runs))
    measured, again = (events_of(run, "evaluate") for run in runs)
    assert measured == again
