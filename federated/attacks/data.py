"""Whether an attack is possible, and what it makes of the attackers' training data."""

from __future__ import annotations

import torch

from heliotrope.data import Dense, Examples
from heliotrope.errors import ConfigError
from heliotrope.tasks import Classification, Task

from ..population import Population
from .kinds import Attack, LabelFlip

__all__ = ["attacked"]


def attacked(attack: Attack, task: Task, train: Examples, population: Population) -> Examples:
    """Return the training examples, those that attackers train on as they have altered them.

    Raises `ConfigError` if no client is left that does not attack, or if labels are to be altered
    where a batch has none.
    """
    able = len(population.training())
    if attack.attackers >= able:
        raise ConfigError(
            f"federated.attack.attackers={attack.attackers} must be less than the {able} clients "
            f"that train: one at least is honest. Set federated.attack.attackers={able - 1} or "
            "less."
        )
    if not isinstance(attack, LabelFlip):
        return train
    labels = train.fields.get("label")
    if not isinstance(task, Classification) or not isinstance(labels, Dense):
        raise ConfigError(
            f"federated/attack={attack.name} exchanges the labels of classes, which "
            f"{type(task).__name__} does not have here. Set federated/attack=sign_flip, or none."
        )
    values = labels.values.clone()
    for client in sorted(population.attackers(attack.attackers)):
        rows = torch.from_numpy(population.train_indices(client))
        values[rows] = attack.labels(values[rows], task.num_outputs)
    flipped = {**train.fields, "label": Dense(values, labels.transform)}
    return Examples(flipped, train.keys)
