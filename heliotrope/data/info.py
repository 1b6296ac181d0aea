"""What a task and a model must know of a dataset beside its examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["MISSING", "PADDING", "SPECIAL_TOKENS", "UNKNOWN", "UNSEEN", "Info"]

PADDING, UNKNOWN = 0, 1
"""The first two of a vocabulary: what fills a batch up, and what training has not seen."""
SPECIAL_TOKENS = ("", "<unknown>")
"""What these two are called."""
UNSEEN, MISSING = 0, 1
"""The first two values of every category: what training has not seen, and what is missing."""


@dataclass(frozen=True)
class Info:
    """Facts of a dataset, from its preparation; a fact that has no meaning for it is empty.

    Parameters
    ----------
    task
        The task that the data poses, unless another is asked for: `classification`,
        `regression`, `next_token`, `rating` or `contrastive`.
    class_names
        Of the field `label`, in the order of the indices.
    image_shape
        (channels, height, width) of the field `image`.
    numeric
        Names of the columns of the field `numeric`; those that tell what is missing included.
    categories
        Column -> number of values, of the field `category`, in the order of its columns.
    vocabulary
        Of the field `tokens`: the token of each index, `PADDING` and `UNKNOWN` first.
    users, items
        Numbers of users and items, of the fields `user` and `item`.
    target_mean, target_std
        Of the field `target` or `rating` in the training split. Batches hold the targets in their
        own unit; a model predicts deviations from the mean, in units of `target_std`.
    """

    task: str = "classification"
    class_names: tuple[str, ...] = ()
    image_shape: tuple[int, ...] = ()
    numeric: tuple[str, ...] = ()
    categories: Mapping[str, int] = field(default_factory=dict)
    vocabulary: tuple[str, ...] = ()
    users: int = 0
    items: int = 0
    target_mean: float = 0.0
    target_std: float = 1.0
