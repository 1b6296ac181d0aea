"""What many tests build: a `Run` from the real configuration, small data, models, generators."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from torch import nn

from heliotrope import config
from heliotrope.cli import run_mode
from heliotrope.config import Mode, Run
from heliotrope.data import Batch, Dense, Examples, Info
from heliotrope.metrics import Metrics
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.tasks import Classification, DataFacts
from heliotrope.training.loop import TrainingBatch

ROOT = Path(__file__).resolve().parent.parent
MODES: tuple[Mode, Mode] = ("distributed", "federated")
Type = Callable[..., int]  # what the fixture `type_` is
Command = Callable[..., tuple[int, str, str]]  # what the fixture `heliotrope` is


def experiments() -> list[str]:
    """Return the name of every file in conf/experiment."""
    return sorted(path.stem for path in (config.conf_dir() / "experiment").glob("*.yaml"))


def choices(group: str) -> list[str]:
    """Return the YAML choices of a config group such as `federated/strategy`."""
    return sorted(path.stem for path in (config.conf_dir() / group).glob("*.yaml"))


def compose(mode: Mode, *overrides: str) -> Run:
    """Return the checked `Run` that `python -m MODE OVERRIDES...` would start."""
    return config.load(composed(*overrides), mode)


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """Return what Hydra makes of the real conf/ and `overrides`; not to be changed."""
    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(config.conf_dir()), version_base="1.3"):
        cfg = hydra_compose("config", overrides=list(overrides))
    OmegaConf.set_readonly(cfg, True)
    return cfg


def fresh_seed() -> int:
    """Draw a seed that no run before had, and print it: pytest shows it if the test fails."""
    value = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"random seed of this test: {value}")
    return value


def small_task(classes: int = 3, shape: Sequence[int] = (4,)) -> Classification:
    """Return a classification task over inputs of `shape`."""
    return classification("small", shape, tuple(f"class {n}" for n in range(classes)))


def classification(
    name: str, shape: Sequence[int], class_names: Sequence[str], label_smoothing: float = 0.0
) -> Classification:
    """Return the classification of images of `shape`, of a dataset called `name`."""
    example = {"image": torch.zeros(1, *shape), "label": torch.zeros(1, dtype=torch.int64)}
    facts = DataFacts(name, Info(class_names=tuple(class_names)), example)
    return Classification(facts, label_smoothing)


def labelled(images: torch.Tensor, labels: torch.Tensor) -> Examples:
    """Return a split of images and their labels."""
    return Examples({"image": Dense(images), "label": Dense(labels)})


def everything(examples: Examples) -> Batch:
    """Return all examples of a split as one batch."""
    return examples.take(torch.arange(len(examples)))


def values_of(examples: Examples, name: str) -> torch.Tensor:
    """Return the values that a dense field of a split is made of, to be changed in place."""
    field = examples.fields[name]
    assert isinstance(field, Dense)
    return field.values


def with_images(examples: Examples, change: Callable[[torch.Tensor], torch.Tensor]) -> Examples:
    """Return a split whose images are what `change` makes of those that batches hold."""
    images = Dense(change(everything(examples)["image"]))
    return Examples({**examples.fields, "image": images}, examples.keys)


def training_batch(
    images: torch.Tensor,
    labels: torch.Tensor,
    divisor: float | None = None,
    seed: int = 0,
    first: int = 0,
) -> TrainingBatch:
    """Return a step on images and their labels; without `divisor`, on their mean loss."""
    count = len(labels)
    given = {"image": images, "label": labels}
    return TrainingBatch(given, count, count if divisor is None else divisor, seed, first)


def random_split(count: int, task: Classification, generator: torch.Generator) -> Examples:
    """Draw `count` examples with labels that have nothing to do with the images."""
    images = torch.randn(count, *task.input_shape, generator=generator)
    return labelled(images, torch.randint(task.num_outputs, (count,), generator=generator))


def confusion_of(metrics: Metrics) -> np.ndarray:
    """Return the confusion matrix of a classification, int64 [C, C]."""
    return np.array(metrics.panels()["confusion_matrix"])


def mapped_from(tensor: torch.Tensor) -> str:
    """Return the path of the file that a tensor's memory is mapped from, empty if there is none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        places, *_, path = line.split(maxsplit=5) if "/" in line else (line.split()[0], "")
        start, end = (int(place, 16) for place in places.split("-"))
        if start <= tensor.data_ptr() < end:
            return path
    return ""


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the model's state."""
    return copy.deepcopy(model.state_dict())


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Fail unless both hold the same names, dtypes, shapes and bits (NaN equals NaN)."""
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert tensor.shape == b[name].shape, name
        raw = [t.detach().cpu().contiguous().view(-1).view(torch.uint8) for t in (tensor, b[name])]
        assert torch.equal(*raw), name


@contextlib.contextmanager
def global_random_state_untouched() -> Iterator[None]:
    """Fail if the block moves the process-wide state of random, NumPy or torch."""
    before = _global_random_state()
    yield
    assert _global_random_state() == before, "the process-wide random state was moved"


def _global_random_state() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the state that must not move
    return random.getstate(), kind, keys.tobytes(), *rest, torch.get_rng_state().numpy().tobytes()


def command(*arguments: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `python -m ARGUMENTS...` of this checkout in a process of its own, in folder `cwd`."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def environment() -> dict[str, str]:
    """Return the environment of a child process: this one's, with the checkout importable."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def saved_by(directory: Path) -> Checkpoint:
    """Return a run's newest checkpoint."""
    found = checkpoint.latest(directory / "checkpoints", pytest.fail)
    assert found is not None
    return found


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a run's newest checkpoint."""
    return dict(saved_by(directory).model)


def events_of(directory: Path, *kinds: str) -> list[dict[str, Any]]:
    """Return a run's events, of `kinds` if given, without what no second run can repeat."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if not kinds or event["event"] in kinds]
    once = ("time", "seconds", "timing")
    return [{k: v for k, v in e.items() if k not in once} for e in events]


class LaterClock:
    """Stands in for the module `time` in `heliotrope.runs.clock`: hours pass at once."""

    def __init__(self) -> None:
        self._added = 0.0

    def monotonic(self) -> float:
        """Return what the system's clock says, and the time added."""
        return time.monotonic() + self._added

    def add(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self._added += seconds


@dataclass
class Started:
    """Stands in for a mode's job: notes what it was started with, then does `action`."""

    action: Callable[[Run, Path], None] = lambda _run, _directory: None
    runs: list[Run] = field(default_factory=list)
    directories: list[Path] = field(default_factory=list)

    def __call__(self, run: Run, directory: Path) -> None:
        self.runs.append(run)
        self.directories.append(directory)
        self.action(run, directory)


def raising(error: BaseException) -> Started:
    """Return a job that fails."""

    def fail(_run: Run, _directory: Path) -> None:
        raise error

    return Started(fail)


def type_command(monkeypatch: pytest.MonkeyPatch, mode: Mode, *arguments: str, job: Started) -> int:
    """Do in this process what `python -m MODE ARGUMENTS...` does, with `job` for the training."""
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", [f"python -m {mode}", *arguments])
    return run_mode(mode, job)
