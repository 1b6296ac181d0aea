"""The rating that a user gives an item."""

from __future__ import annotations

from heliotrope.tasks.base import DataFacts, Task
from heliotrope.tasks.regression import Regression

__all__ = ["Rating", "rating"]


def rating(facts: DataFacts) -> Task:
    """Rating that a user gives an item: squared error; RMSE, MAE and R2."""
    return Rating(facts)


class Rating(Regression):
    """Squared error of one rating, [B, 1], as `Regression` has it, of the field `rating`."""

    targets = ("rating",)
