"""Cross-validation: `folds=5` trains five times, and each time holds out another part."""

from __future__ import annotations

from dataclasses import dataclass

from heliotrope.config.checks.values import one_of
from heliotrope.errors import ConfigError

__all__ = ["Fold", "check_folds"]

_BY = ("auto", "label", "key", "none")


@dataclass(frozen=True)
class Fold:
    """A part of the examples that is held out for testing, of `count` that are as large.

    Parameters
    ----------
    count
        How many parts there are.
    index
        Which is held out, counted from 0.
    by
        How the examples are divided: so that each part has its share of every class (`label`), so
        that no natural key is in two parts (`key`), at random (`none`), or by their classes if they
        have any, else at random (`auto`).
    """

    count: int
    index: int
    by: str


def check_folds(folds: int | None, fold: int | None, by: str, selection: str | None) -> None:
    """Raise `ConfigError` unless the keys of cross-validation belong together.

    `selection` is how a sweep draws the number of its trials, `privacy.selection`.
    """
    one_of("folds_by", by, _BY)
    if folds is None:
        for key, given in (("fold", fold), ("folds_by", None if by == "auto" else by)):
            if given is not None:
                raise ConfigError(
                    f"{key}={given} has no effect without folds, the number of parts that the "
                    f"examples are divided into. Set folds=5, or leave {key} out."
                )
        return
    if folds < 2:
        raise ConfigError(
            f"folds={folds} leaves no part to train on. Set 2 or more, or null for the split that "
            "the data have."
        )
    if fold is not None and not 0 <= fold < folds:
        raise ConfigError(
            f"fold={fold} is none of the {folds} folds, which are counted from 0. Set one of 0 to "
            f"{folds - 1}, or null for all of them."
        )
    if selection is not None:
        raise ConfigError(
            f"privacy.selection={selection} draws trials that are one run each, and folds={folds} "
            "are several. Set privacy.selection=null, or folds=null."
        )
