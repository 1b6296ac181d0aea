"""The moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from distributed.ema import Ema


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
