"""A preparation read back from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heliotrope.data.preparation.arrays import FittedArrays, FittedTargetArrays
from heliotrope.data.preparation.base import Fitted, Preparation
from heliotrope.data.preparation.categories import FittedCategories
from heliotrope.data.preparation.numbers import FittedNumbers, OwnNumbers
from heliotrope.data.preparation.pixels import FittedPixels, OwnPixels
from heliotrope.data.preparation.targets import FittedIds, FittedLabels, FittedTarget
from heliotrope.data.preparation.text import FittedCharacters, FittedWords
from heliotrope.data.preparation.tokens import FittedTokens
from heliotrope.errors import DataError

__all__ = ["from_json"]

_KINDS: dict[str, type[Fitted]] = {
    step.kind: step
    for step in (
        FittedArrays,
        FittedCategories,
        FittedCharacters,
        FittedIds,
        FittedLabels,
        FittedNumbers,
        FittedPixels,
        FittedTarget,
        FittedTargetArrays,
        FittedTokens,
        FittedWords,
        OwnNumbers,
        OwnPixels,
    )
}


def from_json(saved: Mapping[str, Any]) -> Preparation:
    """Return what `Preparation.to_json` was asked of.

    Raises `DataError` if a version with other steps wrote it.
    """
    steps = []
    for entry in saved["steps"]:
        values = {name: _tuples(value) for name, value in entry.items()}
        kind = values.pop("kind")
        try:
            steps.append(_KINDS[kind](**values))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"The preparation of the data has a step {kind} that this version does not know "
                f"({error}). Use the version that wrote it."
            ) from error
    return Preparation(tuple(steps), saved["fit"], saved["task"])


def _tuples(value: Any) -> Any:
    """Return a value of JSON with tuples for its lists."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
