"""A checkpoint to be saved, and what refuses none."""

from __future__ import annotations

import pytest
import torch

from heliotrope.runs.checkpoint import Checkpoint

FILES = ("model.safetensors", "state.safetensors", "state.json", "manifest.json")


def example(progress: int, size: int = 4) -> Checkpoint:
    generator = torch.Generator().manual_seed(progress)
    return Checkpoint(
        progress=progress,
        model={"0.weight": torch.randn(size, 3, generator=generator), "0.bias": torch.zeros(size)},
        arrays={"momentum": torch.randn(size, generator=generator)},
        state={"round": progress, "history": [0.5, None, "text"]},
    )


def refuse(line: str) -> None:
    pytest.fail(f"a good checkpoint was refused: {line}")
