"""A run that is there: its configuration, its checkpoint, and its model on other rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import nn

from heliotrope import config
from heliotrope.commands.folds import fold_directories
from heliotrope.config import Mode, Run
from heliotrope.data import Dataset, Examples
from heliotrope.data.preparation import Preparation, from_json
from heliotrope.errors import ConfigError
from heliotrope.models import build
from heliotrope.models.personal import personal_names
from heliotrope.plugin_loading import raised
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.directory import RunDirectory
from heliotrope.shell import typed
from heliotrope.system.console import plain_console
from heliotrope.system.resources import pick_device
from heliotrope.tasks import Task, task_of

__all__ = ["Trained", "read_checkpoint", "read_config", "read_result", "trained_model"]

_LARGEST = 1e308  # of numbers: nothing that is computed with them overflows


def read_config(directory: Path) -> Run:
    """Return the configuration of the run in `directory`; its plug-ins are loaded.

    Raises `ConfigError` if there is none, or a plug-in has never been named by this user.
    """
    path = RunDirectory(directory).config
    if not path.exists():
        raise ConfigError(
            f"run={directory} is no run directory: it has no config.yaml. "
            "Name the directory that a run wrote."
        )
    return config.from_resolved(path)


def read_result(directory: Path) -> Mapping[str, Any]:
    """Return the result.json of a finished run, whose claims are of the right types.

    Raises `ConfigError` if there is none, or if it is not what a run writes.
    """
    path = RunDirectory(directory).result
    if not path.exists():
        raise ConfigError(
            f"run={directory} is not finished: it has no result.json. Go on with resume=true first."
        )
    try:
        result: Mapping[str, Any] = json.loads(path.read_bytes())
        _check_result(result)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not what a run writes: {raised(error, '')}. Restore the file, or train the "
            "run again."
        ) from error
    return result


def _check_result(result: Mapping[str, Any]) -> None:
    """Raise something unless mode, privacy and examples are such as we write them."""
    if result["mode"] not in get_args(Mode):  # it names a package
        raise ValueError(f"mode={result['mode']!r:.40}")
    numbers = {"examples_seen": result["examples_seen"]}
    privacy = result.get("privacy")
    if privacy is not None:
        numbers["delta"] = privacy["delta"]
        optional = {key: privacy.get(key) for key in ("epsilon", "clip", "noise_multiplier")}
        numbers |= {key: value for key, value in optional.items() if value is not None}
        if not isinstance(privacy["unit"], str):
            raise TypeError(f"unit={privacy['unit']!r:.40}")
    for key, value in numbers.items():
        if type(value) not in (int, float) or not 0 <= value < _LARGEST:
            raise ValueError(f"{key}={value!r:.40}")


def read_checkpoint(directory: Path, name: str | None) -> tuple[Checkpoint, Preparation]:
    """Return a run's newest checkpoint, or the one called `name`, and the preparation in it.

    Raises
    ------
    ConfigError
        If there is no such checkpoint, or it holds no preparation.
    CheckpointError
        If it is damaged, or all are.
    """
    root = RunDirectory(directory).checkpoints
    found = sorted(path.name for path in root.glob("[0-9]*"))
    if name is not None and name not in found:
        raise ConfigError(
            f"checkpoint={name} is not in {root}. There are: {', '.join(found) or 'none yet'}."
        )
    console = plain_console(stderr=True)
    saved = (
        checkpoint.load(root / name)
        if name is not None
        else checkpoint.latest(root, lambda line: console.print(line, style="red"))
    )
    if saved is None:
        first = fold_directories(directory)[0]
        if first != directory:
            raise ConfigError(
                f"run={directory} is a cross-validation. Name one of its folds, such as "
                f"{typed('run', first)}."
            )
        raise ConfigError(f"run={directory} has no checkpoint yet.")
    if "preparation" not in saved.state:
        raise ConfigError(
            f"run={directory} was written by an earlier version, which prepared data otherwise. "
            "Evaluate it with that version, or train it again."
        )
    with checkpoint.understood(checkpoint.path_of(root, saved.progress)):
        return saved, from_json(saved.state["preparation"])


def trained_model(directory: Path, run: Run, saved: Checkpoint, task: Task) -> nn.Module:
    """Return the model of a run's checkpoint, on the run's device.

    Raises `ConfigError` if the weights are those of another model, or a part of them is with the
    clients of a federated run.
    """
    model = build(run.model, task, run.seed)
    kept = [name for name in personal_names(model) if name not in saved.model]
    if kept:
        raise ConfigError(
            f"run={directory} keeps {kept[0]} with its clients, who evaluate it: see result.json. "
            "To evaluate it again, go on with resume=true."
        )
    checkpoint.load_weights(model, saved.model, RunDirectory(directory).checkpoints)
    return model.to(pick_device(run.device))


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run has learned, without the data that it was trained on.

    Parameters
    ----------
    directory
        Of the run.
    run
        Its configuration.
    saved
        A checkpoint.
    preparation
        What the rows went through before the model saw them.
    """

    directory: Path
    run: Run
    saved: Checkpoint
    preparation: Preparation

    def model_for(self, examples: Examples) -> tuple[nn.Module, Task]:
        """Return the trained model, on the run's device and in evaluation mode, and its task.

        `examples` tell shapes and types, and must have the targets too, whatever they hold.
        Raises `ConfigError` if the weights are those of another model.
        """
        dataset = Dataset(
            name=self.run.data.name,
            train=examples,
            validation=examples,
            test=examples,
            info=self.preparation.info(),
            preparation=self.preparation,
        )
        task = task_of(dataset, self.run)
        return trained_model(self.directory, self.run, self.saved, task).eval(), task
