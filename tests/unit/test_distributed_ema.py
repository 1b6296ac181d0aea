"""The moving average of the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from distributed.strategies.ema import Ema
from distributed.strategies.engine import Engine
from distributed.topology import Topology
from heliotrope.models import build
from heliotrope.training.loop import TrainTotals
from tests.support import (
    assert_same_tensors,
    compose,
    everything,
    fresh_seed,
    random_split,
    small_task,
    training_batch,
    weights,
)


def test_the_average_follows_the_weights_by_its_decay_once_it_is_warm() -> None:
    model, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    ema = Ema(average, model, decay=0.5)
    expected = average.weight.item()
    for step in range(1, 30):
        with torch.no_grad():
            model.weight.fill_(step)
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        torch.testing.assert_close(average.weight.item(), expected, rtol=1e-5, atol=1e-6)
    assert abs(expected - 28.0) < 1e-3  # half of each difference of one: it lags by one step


def test_a_step_that_float16_leaves_out_does_not_move_the_average(tmp_path: Path) -> None:
    overrides = ["distributed.precision=fp16", "distributed.ema_decay=0.5", "model.hidden=[5]"]
    run, task = compose("distributed", *overrides), small_task(3, (4,))
    engine = Engine(run, build(run.model, task, 1), task, Topology(), tmp_path)
    with engine.evaluating() as model:
        before = weights(model)
    split = everything(random_split(6, task, torch.Generator().manual_seed(fresh_seed())))
    given = split["image"], split["label"]
    # Losses divided by so little overflow: the scaler leaves this step out.
    engine.begin(TrainTotals())
    engine.step(training_batch(*given, divisor=1e-36))
    assert_same_tensors(weights(model), before)
    assert engine.snapshot().rest["ema_steps"] == 0
    engine.step(training_batch(*given))
    assert engine.snapshot().rest["ema_steps"] == 1
    assert not torch.equal(model.state_dict()["1.weight"], before["1.weight"])
