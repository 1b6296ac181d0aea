"""A benchmark's problem as examples of ours."""

from __future__ import annotations

import torch
from problem import Problem

from heliotrope.data import Affine, Dense, Examples, Info, Windows
from heliotrope.data.examples import Field

__all__ = ["examples_of", "info_of"]


def examples_of(problem: Problem) -> Examples:
    """Return all examples, as a source of ours would give them."""
    values, targets = problem.values, problem.targets
    if problem.kind == "tokens":
        starts = torch.arange(len(values)) * values.shape[1]
        lengths = torch.full_like(starts, values.shape[1])
        streams = {"tokens": values, "next": targets.to(values.dtype)}
        return Examples({k: Windows(v.flatten(), starts, lengths) for k, v in streams.items()})
    label = Dense(targets)
    fields: dict[str, Field] = {"numeric": Dense(values), "label": label}
    if problem.kind == "pixels":
        image = Dense(values, Affine(problem.scale, problem.shift))
        fields = {"image": image, "label": label}
    return Examples(fields)


def info_of(problem: Problem) -> Info:
    """Return what the task and the model must know."""
    names = tuple(str(number) for number in range(problem.model["classes"]))
    if problem.kind == "tokens":
        return Info(task="next_token", vocabulary=names)
    return Info(class_names=names)
