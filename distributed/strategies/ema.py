"""An exponential moving average of the weights, which is what is evaluated and exported."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["Ema"]


class Ema:
    """Averages the weights of `model` into `average`, a model of the same kind.

    After step t, counted from 1, the average moves by 1 - d towards the weights, where d is
    `decay`, or (1 + t) / (10 + t) while that is less: the untrained weights it begins with
    are soon forgotten (as in TensorFlow's ExponentialMovingAverage with `num_updates`).
    Averages of weights are those of Polyak and Juditsky (1992).
    """

    def __init__(self, average: nn.Module, model: nn.Module, decay: float) -> None:
        self.model = average
        self.steps = 0
        self._decay = decay
        self._averages = list(average.parameters())
        self._weights = list(model.parameters())
        self._buffers = list(zip(average.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step. Buffers are not averaged but copied."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(self._averages, self._weights, self.steps)
        self.copy_buffers()

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Take over the buffers as they are."""
        for copied, buffer in self._buffers:
            copied.copy_(buffer)
