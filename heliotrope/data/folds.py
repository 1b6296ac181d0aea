"""The folds of cross-validation: all rows divided into parts, of which one is held out.

Shape legend: N rows, k folds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope.config.folds import Fold
from heliotrope.data.columns import Column, Items, Pieces, Raw, Strings, Texts, Values
from heliotrope.data.mapped import MappedRows
from heliotrope.data.preparation import Labels, Tokens
from heliotrope.data.sources.unprepared import Unprepared
from heliotrope.data.stored import Selection, StoredColumn
from heliotrope.errors import DataError
from heliotrope.seeding import seed

__all__ = ["holding_out", "undivided"]

_MOST_NAMED = 3  # classes in a line


def undivided(found: Unprepared, name: str) -> Unprepared:
    """Return the dataset `name` with all rows that folds divide as training rows, and no others.

    Test rows that were drawn from the same table go back to where they were. A test set of its own
    stays apart: no fold has it.

    Raises `DataError` for rows that are a stream, of which none can be taken out.
    """
    if any(isinstance(step, Tokens) for step in found.steps):
        raise DataError(
            f"folds cannot divide data={name}, a stream of tokens that is read from its file as it "
            "lies there. Set folds=null."
        )
    rows = _rejoined(found.train, found.test) if found.drawn else found.train
    return replace(found, train=rows, test=rows.subset(slice(0, 0)))


def holding_out(found: Unprepared, fold: Fold, run_seed: int, name: str) -> Unprepared:
    """Return the undivided dataset `name` with the rows of a fold for testing, the rest to train.

    The folds follow from `run_seed` alone: they are the same in each mode, and for each `index`.
    No row is in two, and every row is in one; they differ in size by one row, or with natural
    keys by as little as a greedy search finds (scikit-learn's KFold, StratifiedKFold and
    StratifiedGroupKFold, shuffled).

    Raises
    ------
    DataError
        If there are fewer rows, or natural keys, than folds, or no class has as many rows as there
        are folds, or the rows have no classes or keys to divide by.
    """
    rows = found.train
    if len(rows) < fold.count:
        raise DataError(
            f"folds={fold.count}, but data={name} has {len(rows)} example(s) to divide. Set folds "
            f"to at most {len(rows)}, or to null."
        )
    classes = _Classes.of(found)
    by = fold.by
    if by == "auto":
        by = "none" if classes is None else "label"
    if by == "key":
        parts, how = _by_key(rows, classes, fold, run_seed, name), "no natural key in two of them"
    elif by == "label":
        parts, how = _by_class(classes, fold, run_seed, name), "a share of each class in all"
    else:
        anything = np.zeros(len(rows))
        parts, how = _parts("KFold", fold, run_seed, anything), "divided at random"
    held_out = np.sort(parts[fold.index])
    kept = np.ones(len(rows), dtype=np.bool_)
    kept[held_out] = False
    note = (
        f"fold {fold.index} of 0 to {fold.count - 1}, {how}: {kept.sum():,} examples for "
        f"training, {len(held_out):,} for testing"
    )
    lacking = classes.lacking(parts) if classes is not None else []
    train, test = rows.subset(np.flatnonzero(kept)), rows.subset(held_out)
    return replace(found, train=train, test=test, notes=(*found.notes, note, *lacking))


def _by_class(
    classes: _Classes | None, fold: Fold, run_seed: int, name: str
) -> list[NDArray[np.int64]]:
    if classes is None:
        raise DataError(
            f"folds_by=label, but the examples of data={name} have no classes. Set folds_by=none, "
            "or folds_by=key where they have natural keys."
        )
    largest = int(classes.sizes.max())
    if largest < fold.count:
        raise DataError(
            f"folds={fold.count}, but no class of data={name} has so many examples: the largest "
            f"has {largest}. Lower folds, or set folds_by=none to divide at random."
        )
    return _parts("StratifiedKFold", fold, run_seed, classes.of_rows)


def _by_key(
    rows: Raw, classes: _Classes | None, fold: Fold, run_seed: int, name: str
) -> list[NDArray[np.int64]]:
    if rows.keys is None:
        raise DataError(
            f"folds_by=key, but the examples of data={name} have no natural keys. Set "
            "folds_by=auto."
        )
    keys = np.unique(rows.keys, return_inverse=True)[1]
    count = int(keys.max()) + 1
    if count < fold.count:
        raise DataError(
            f"folds={fold.count} with folds_by=key, but data={name} has {count} natural key(s), "
            f"each of which is in one fold. Set folds to at most {count}, or folds_by=auto."
        )
    strata = np.zeros(len(rows), dtype=np.int64)  # of one class
    if classes is not None and classes.sizes.max() >= fold.count:
        strata = classes.of_rows
    parts = _parts("StratifiedGroupKFold", fold, run_seed, strata, keys)
    if not all(map(len, parts)):
        raise DataError(
            f"folds={fold.count} with folds_by=key: the natural keys of data={name} differ so much "
            "in size that a fold would be empty. Lower folds, or set folds_by=auto."
        )
    return parts


def _parts(
    splitter: str,
    fold: Fold,
    run_seed: int,
    strata: NDArray[Any],
    keys: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """Return the rows of each fold by a class of scikit-learn, given those of strata and keys."""
    from sklearn import model_selection  # type: ignore[import-untyped]  # takes a second

    state = seed(run_seed, "folds") % 2**32
    chosen = getattr(model_selection, splitter)(fold.count, shuffle=True, random_state=state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rare classes: a note tells of them
        return [test for _, test in chosen.split(strata, strata, keys)]


@dataclass(frozen=True)
class _Classes:
    """The class of each row, [N], counted from 0 in the order of `names`."""

    of_rows: NDArray[np.int64]
    names: list[str]

    @classmethod
    def of(cls, found: Unprepared) -> _Classes | None:
        """Return those of the training rows; None if rows have no classes."""
        step = next((step for step in found.steps if isinstance(step, Labels)), None)
        if step is None:
            return None
        column = found.train.columns[step.column]
        assert isinstance(column, Strings | Values)
        words = column.words if isinstance(column, Strings) else step.names
        given = column.codes if isinstance(column, Strings) else column.values
        values, of_rows = np.unique(given, return_inverse=True)
        known = [words[int(v)] if 0 <= v < len(words) else str(v) for v in values]
        return cls(of_rows, known)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each class."""
        return np.bincount(self.of_rows)

    def lacking(self, parts: Sequence[NDArray[np.int64]]) -> list[str]:
        """Return what to say of classes that a fold is tested, or trained, without: lines.

        `parts` are the rows that each fold tests.
        """
        tested = np.stack([np.bincount(self.of_rows[p], minlength=len(self.names)) for p in parts])
        untested, untrained = (tested == 0).any(axis=0), (tested == self.sizes).any(axis=0)
        return [
            f"some of {len(parts)} folds have no example of class {self._named(lacking)} for {use}"
            for lacking, use in ((untested, "testing"), (untrained, "training"))
            if lacking.any()
        ]

    def _named(self, chosen: NDArray[np.bool_]) -> str:
        found = [f"{self.names[i]} ({self.sizes[i]})" for i in np.flatnonzero(chosen)]
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        return f"{', '.join(found[:_MOST_NAMED])}{more}"


def _rejoined(train: Raw, test: Raw) -> Raw:
    """Return the rows that `Raw.parted` has divided, in the order that they had."""
    assert train.numbers is not None
    assert test.numbers is not None
    order = np.argsort(np.concatenate((train.numbers, test.numbers)), kind="stable")
    selections: dict[int, Selection] = {}
    columns = {
        name: _joined(train.columns[name], test.columns[name], selections) for name in train.columns
    }
    keys: NDArray[Any] | None = None
    if train.keys is not None and test.keys is not None:
        keys = np.concatenate((train.keys, test.keys))
    numbers = np.concatenate((train.numbers, test.numbers))
    return Raw(columns, keys, train.origin, numbers, train.files).subset(order)


def _joined(first: Column, second: Column, selections: dict[int, Selection]) -> Column:
    """Return the rows of two columns that are parts of one; `selections` are made once for all."""
    match first, second:
        case StoredColumn(), StoredColumn():
            key = id(first.selection)
            if key not in selections:
                parts = (first.selection.positions, second.selection.positions)
                selections[key] = Selection(np.concatenate(list(map(np.asarray, parts))))
            return replace(first, selection=selections[key])
        case Values(), Values():
            return Values(np.concatenate((first.values, second.values)))
        case Strings(), Strings():
            return Strings(np.concatenate((first.codes, second.codes)), first.words)
        case Texts(), Texts():
            return Texts([*first.texts, *second.texts])
        case Pieces(), Pieces():
            starts = np.concatenate((first.starts, second.starts))
            lengths = np.concatenate((first.lengths, second.lengths))
            return Pieces(first.stream, starts, lengths)
        case Items(), Items():
            return replace(first, rows=np.concatenate((first.rows, second.rows)))
        case MappedRows(), MappedRows():
            rows = np.concatenate((np.asarray(first.rows), np.asarray(second.rows)))
            return MappedRows(first.array, rows)
    raise TypeError(f"columns of different kinds: {type(first).__name__}, {type(second).__name__}")
