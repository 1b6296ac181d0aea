"""A plug-in with little data of the exemplars that have much, or that is not there everywhere."""

from __future__ import annotations

import numpy as np

from heliotrope import plugin
from heliotrope.data.columns import Raw, Values
from heliotrope.data.preparation import Ids, Target
from heliotrope.data.sources.emoji import emoji
from heliotrope.data.sources.unprepared import Unprepared


@plugin.data
def few_emoji(*, every: int = 19) -> Unprepared:
    """Every so-manieth picture of the emoji and its name."""
    found = emoji(vocabulary=99)
    train, test = (split.subset(slice(None, None, every)) for split in (found.train, found.test))
    return Unprepared(train, test, found.steps, found.task)


@plugin.data
def few_ratings(*, users: int = 5, items: int = 12, ratings: int = 90) -> Unprepared:
    """Made-up ratings of films; some users give many, and the last of them are the test split."""
    draw = np.random.default_rng(3)
    user = np.concatenate([np.arange(users), draw.integers(0, users - 2, ratings - users)])
    columns = {
        "user": Values(user),
        "item": Values(draw.integers(0, items, ratings)),
        "rating": Values(draw.integers(1, 6, ratings).astype(np.float32)),
    }
    rows, last = Raw(columns, user, "made up"), ratings // 5
    steps = (Ids("user", users), Ids("item", items), Target("rating", "rating"))
    return Unprepared(
        rows.subset(slice(ratings - last)),
        rows.subset(slice(ratings - last, None)),
        steps,
        "rating",
    )
