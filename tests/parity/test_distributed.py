"""Parity 1 and 2: workers, launchers and a plain loop give the same model and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from distributed.loop.example_order import permutation
from heliotrope.commands.evaluate import evaluate_run
from heliotrope.data import load
from heliotrope.models import build
from heliotrope.tasks import task_of
from tests.distributed_runs import (
    INLINE,
    MOMENTUM,
    RAY,
    SMALL,
    TORCHRUN,
    assert_close,
    result_of,
    train,
)
from tests.support import compose, events_of, weights_of

pytestmark = pytest.mark.usefixtures("no_report")

# 1294 training examples: the last of these batches has one, so rank 0 has none there.
_UNEVEN = ("model=cnn", "model.channels=[4]", "model.kernel_size=3", "distributed.batch_size=431")
_EPOCHS = 3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One worker, in this process."""
    return train(tmp_path_factory.mktemp("runs") / "inline", *INLINE, *_UNEVEN, epochs=_EPOCHS)


@pytest.fixture(scope="module")
def on_ray(ray_session: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two workers on Ray."""
    return train(tmp_path_factory.mktemp("runs") / "ray", *RAY, *_UNEVEN, epochs=_EPOCHS)


def test_one_worker_is_the_plain_loop(tmp_path: Path) -> None:
    overrides = [*INLINE, "model.dropout=0.0", "optimizer.weight_decay=0.001"]
    train(tmp_path, *overrides, epochs=2)

    run = compose("distributed", *SMALL, MOMENTUM, *overrides)
    dataset = load(run.data, run.seed)
    model = build(run.model, task_of(dataset), run.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.001)
    for epoch in (1, 2):
        order = permutation(run.seed, epoch, len(dataset.train))
        for rows in order.split(run.distributed.batch_size):
            batch = dataset.train.take(rows)
            optimizer.zero_grad()
            functional.cross_entropy(model(batch["image"]), batch["label"]).backward()
            optimizer.step()

    for name, value in weights_of(tmp_path).items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_two_ray_workers_are_one_worker_with_the_same_global_batch(
    alone: Path, on_ray: Path
) -> None:
    assert_close(alone, on_ray)
    one, two = result_of(alone), result_of(on_ray)
    assert (one["steps"], one["examples_seen"]) == (4 * _EPOCHS, 1294 * _EPOCHS)
    assert (two["steps"], two["examples_seen"]) == (4 * _EPOCHS, 1294 * _EPOCHS)
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-4), name
    assert [e["train/loss"] for e in events_of(on_ray, "train")] == pytest.approx(
        [e["train/loss"] for e in events_of(alone, "train")], rel=1e-5
    )


def test_gradients_are_counted_as_a_ring_sends_them(alone: Path, on_ray: Path) -> None:
    assert (result_of(alone)["bytes_up"], result_of(alone)["bytes_down"]) == (0, 0)
    once = 4 * result_of(on_ray)["parameters"] * 4 * _EPOCHS  # float32, each of the steps
    assert (result_of(on_ray)["bytes_up"], result_of(on_ray)["bytes_down"]) == (once, once)


def test_two_ranks_measure_what_one_process_measures(on_ray: Path) -> None:
    whole = evaluate_run(on_ray)
    parts = result_of(on_ray)["metrics"]
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, rel=1e-7), name
    [final] = events_of(on_ray, "final")
    assert sum(map(sum, final["confusion_matrix"])) == 359


def test_torchrun_is_one_worker_with_the_same_global_batch(alone: Path, tmp_path: Path) -> None:
    assert_close(alone, train(tmp_path, *TORCHRUN, *_UNEVEN, epochs=_EPOCHS))


def test_ray_is_left_running_for_others(on_ray: Path, ray_session: Any) -> None:
    assert (on_ray / "result.json").exists()
    assert ray_session.is_initialized()
