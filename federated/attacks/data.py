"""Whether an attack is possible, and what it makes of the attackers' training data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.data import Dataset, Dense, Examples
from heliotrope.data.columns import Raw
from heliotrope.errors import ConfigError, closest
from heliotrope.seeding import numpy_generator
from heliotrope.tasks import Classification, Task

from ..fractions import fraction_rounded_up
from ..population import Population
from .kinds import Attack, Backdoor, LabelFlip
from .triggers import stamped

__all__ = ["TRIGGERED", "attacked", "triggered"]

TRIGGERED = "attack"
"""The split of test examples with a backdoor's trigger, among those that no client holds."""


def attacked(
    attack: Attack,
    task: Task,
    train: Examples,
    population: Population,
    dataset: Dataset,
    prepare: Callable[[Raw], Examples],
    run_seed: int,
) -> Examples:
    """Return the training examples, those that attackers train on as they have altered them.

    `train` are those of `dataset` as clients have them: what `prepare` makes of its rows. Raises
    `ConfigError` if no client is left that does not attack, or if the attack has no meaning for
    these examples.
    """
    able = len(population.training())
    if attack.attackers >= able:
        raise ConfigError(
            f"federated.attack.attackers={attack.attackers} must be less than the {able} clients "
            f"that train: one at least is honest. Set federated.attack.attackers={able - 1} or "
            "less."
        )
    if not isinstance(attack, LabelFlip | Backdoor):
        return train
    classes, labels = _labels(attack, task, train)
    attackers, values = sorted(population.attackers(attack.attackers)), labels.values.clone()
    if isinstance(attack, LabelFlip):
        rows = torch.from_numpy(population.train_examples(attackers))
        values[rows] = attack.labels(values[rows], len(classes))
        return _relabelled(train, labels, values)
    assert dataset.fitting is not None
    drawn = np.concatenate([_drawn(attack, population, c, run_seed) for c in attackers])
    values[torch.from_numpy(drawn)] = _target(attack, classes)
    raw = stamped(attack, dataset, dataset.fitting.train, drawn)
    return _relabelled(prepare(raw), labels, values)


def triggered(attack: Attack | None, task: Task, dataset: Dataset) -> Examples | None:
    """Return the test examples that a backdoor is measured on: the share taken for it is right.

    Those that are not of its target, with the trigger on them and its label; None without a
    backdoor. Raises `ConfigError` as `attacked` does.
    """
    if not isinstance(attack, Backdoor):
        return None
    classes, labels = _labels(attack, task, dataset.test)
    target, fitting = _target(attack, classes), dataset.fitting
    rows = np.flatnonzero(labels.values.cpu().numpy() != target)
    if not len(rows):
        raise ConfigError(
            f"federated.attack.target={classes[target]}: all test examples are of that class, so "
            "that success cannot be measured. Choose another target."
        )
    assert fitting is not None
    raw = stamped(attack, dataset, fitting.test.subset(rows), np.arange(len(rows)))
    examples = dataset.preparation.apply(raw, training=fitting.train)
    return _relabelled(examples, labels, torch.full((len(rows),), target))


def _labels(attack: Attack, task: Task, examples: Examples) -> tuple[tuple[str, ...], Dense]:
    """Return the classes, and the field of labels."""
    labels = examples.fields.get("label")
    if not isinstance(task, Classification) or not isinstance(labels, Dense):
        raise ConfigError(
            f"federated/attack={attack.name} exchanges the labels of classes, which "
            f"{type(task).__name__} does not have here. Set federated/attack=sign_flip, or none."
        )
    return task.class_names, labels


def _relabelled(examples: Examples, like: Dense, values: Tensor) -> Examples:
    label = Dense(values.to(like.values.dtype), like.transform)
    return Examples({**examples.fields, "label": label}, examples.keys)


def _target(attack: Backdoor, classes: tuple[str, ...]) -> int:
    if attack.target is None:
        return 0
    if attack.target not in classes:
        raise ConfigError(
            f"federated.attack.target={attack.target} is not one of the classes "
            f"{', '.join(classes)}.{closest(attack.target, classes)}"
        )
    return classes.index(attack.target)


def _drawn(
    attack: Backdoor, population: Population, client: int, run_seed: int
) -> NDArray[np.int64]:
    """Return the examples that an attacker stamps."""
    own = population.train_indices(client)
    identity = int(population.partition.identities[client])
    mixed = numpy_generator(run_seed, "backdoor", identity).permutation(own)
    return mixed[: fraction_rounded_up(attack.fraction, len(own))]
