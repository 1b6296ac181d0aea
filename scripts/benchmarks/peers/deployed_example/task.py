"""The model and the local training of workload A: the same for every client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """784-200-200-10, over images [B, 1, 28, 28] of -1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 200), nn.Linear(200, 200)
        self.fc3 = nn.Linear(200, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 10]."""
        hidden = torch.relu(self.fc1(image.flatten(1)))
        logits: torch.Tensor = self.fc3(torch.relu(self.fc2(hidden)))
        return logits


def load_data(folder: str, batch_size: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Return batches of the rows in a node's data folder, in a new order each epoch."""
    with np.load(Path(folder) / "example.npz") as file:
        images = (torch.from_numpy(file["images"]).unsqueeze(1).float() / 255 - 0.5) / 0.5
        labels = torch.from_numpy(file["labels"])
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size, shuffle=True)


def train(net: nn.Module, batches: DataLoader[tuple[torch.Tensor, ...]], lr: float) -> float:
    """Train for one epoch; return the mean loss."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    net.train()
    running = 0.0
    for images, labels in batches:
        optimizer.zero_grad()
        loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()
        running += loss.item()
    return running / len(batches)
