"""Opacus: DP-SGD on images in an .npz, with Poisson batches; prints seconds a step.

`--variant MODEL,BATCH`, where MODEL is mlp or convnet. One thread; the first epoch does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def _model(name: str) -> nn.Module:
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def main() -> None:
    """Train, and print the mean time of a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", required=True)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    name, batch = options.variant.split(",")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(7)
    with np.load(options.data) as file:
        images = torch.from_numpy(file["images"]).float().div_(255)[:, None]
        labels = torch.from_numpy(file["labels"]).long()
    model = _model(name)
    model, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(images, labels), batch_size=int(batch)),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    seconds, steps = 0.0, 0
    for epoch in range(options.epochs):
        started = time.perf_counter()
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            steps += epoch > 0
        seconds += (time.perf_counter() - started) * (epoch > 0)
    print(json.dumps({"seconds": seconds / steps, "versions": {"opacus": version("opacus")}}))


if __name__ == "__main__":
    sys.exit(main())
