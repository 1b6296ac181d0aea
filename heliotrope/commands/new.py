"""`new`: a starter project with a model and a dataset of one's own, which trains and is tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from heliotrope.errors import ConfigError
from heliotrope.shell import typed
from heliotrope.system.console import plain_console

__all__ = ["new_command"]

_PLUGIN = '''"""A dataset and a model; `heliotrope list plugins=[plugin.py]` prints their keys."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from heliotrope import plugin


@plugin.data
def rings(*, examples: int = 1000, noise: float = 0.05):
    """Points in the plane: those near the middle are of class 1.

    Parameters
    ----------
    examples
        How many points there are.
    noise
        How far each is moved, about, after its class is settled.
    """
    generator = torch.Generator().manual_seed(0)
    points = 2 * torch.rand(examples, 2, generator=generator) - 1
    classes = (points.norm(dim=1) < 0.7).long()
    return TensorDataset(points + noise * torch.randn(examples, 2, generator=generator), classes)


@plugin.model
def tiny(task, *, width: int = 32) -> nn.Module:
    """One hidden layer.

    Parameters
    ----------
    width
        Units of the hidden layer.
    """
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, task.num_outputs))
'''

_EXPERIMENT = """# @package _global_
defaults:
  - override /model: tiny
  - override /data: rings
  - override /optimizer: adam
  - override /federated/partition: iid

name: rings
seed: 7
plugins: [plugin.py]
optimizer: {lr: 0.03}
distributed: {epochs: 10, batch_size: 32, launcher: inline, workers: 1}
federated:
  rounds: 10
  clients_per_round: 10
  local_epochs: 2
  batch_size: 16
  partition: {clients: 10}
"""

_TEST = '''"""The experiment trains in both modes, and the model learns."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("mode", ["distributed", "federated"])
def test_it_learns(mode, tmp_path):
    command = [sys.executable, "-m", "heliotrope", mode, "experiment=experiment.yaml"]
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path}"], cwd=HERE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert metrics["test/accuracy"] > 0.85
'''

_README = """# A project with Heliotrope

- `plugin.py`: a dataset and a model, to be replaced by your own
- `experiment.yaml`: what is trained, and how
- `test_project.py`: whether it learns; `pytest` runs it

Train it both ways, and compare:

    heliotrope distributed experiment=experiment.yaml hydra.run.dir=runs/distributed
    heliotrope federated experiment=experiment.yaml hydra.run.dir=runs/federated
    heliotrope compare runs/distributed runs/federated

`heliotrope list plugins=[plugin.py] model=tiny` prints the keys of the model, for commands:

    heliotrope federated experiment=experiment.yaml model.width=64
"""

_FILES = {
    "plugin.py": _PLUGIN,
    "experiment.yaml": _EXPERIMENT,
    "test_project.py": _TEST,
    "README.md": _README,
}


def new_command(arguments: Sequence[str]) -> None:
    """`DIR`: write a starter project there; raises `ConfigError` if DIR is not empty."""
    if len(arguments) != 1 or arguments[0].startswith("-") or not arguments[0]:
        raise ConfigError("new takes one folder, which it makes: heliotrope new mine.")
    folder = Path(arguments[0])
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty. Name a new folder.")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in _FILES.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be written: {error.strerror}. Name another folder."
        ) from error
    experiment = typed("experiment", folder / "experiment.yaml")
    console = plain_console()
    console.print(f"{folder}: {', '.join(_FILES)}\ntrain it: heliotrope federated {experiment}")
