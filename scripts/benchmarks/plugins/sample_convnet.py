"""The small convolutional network of Opacus' example on MNIST: 26,010 parameters."""

from __future__ import annotations

from torch import Tensor, nn

from heliotrope import plugin
from heliotrope.tasks import Task

_MEAN, _DEVIATION = 0.1307, 0.3081  # of MNIST's pixels, which that example takes as known


@plugin.model
class SampleConvNet(nn.Module):
    """Two convolutions and two dense layers over images [B, 1, 28, 28] of 0 to 1."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
            *(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1)),
            *(nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, task.num_outputs)),
        )

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers((image - _MEAN) / _DEVIATION)
        return logits
