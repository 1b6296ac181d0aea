"""Tokens that are numbers already: a stream in a file, whose windows a model continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from heliotrope.config.data import Fit
from heliotrope.data.columns import Raw
from heliotrope.data.fields import Field
from heliotrope.data.info import SPECIAL_TOKENS, Info
from heliotrope.data.mapped import Constant, Mapped, MappedRows
from heliotrope.data.preparation.base import Fitted, Kind, Step
from heliotrope.data.windows import length_of
from heliotrope.errors import DataError

__all__ = ["FittedTokens", "Tokens"]


@dataclass(frozen=True)
class Tokens(Step):
    """Make the fields `tokens` and `next`, int64 [N, L], of windows of L + 1 tokens in a file.

    `next` holds, for each token, the one that follows it. Nothing is fitted.

    Parameters
    ----------
    size
        How many different tokens there are; all know it beforehand.
    """

    size: int
    column: str = "tokens"

    measured_for: ClassVar[tuple[Fit, ...]] = ()

    def fitted(self, statistic: None) -> FittedTokens:  # noqa: ARG002 - it needs none
        return FittedTokens(self.column, self.size)


@dataclass(frozen=True)
class FittedTokens(Fitted):
    """Token n of a file is number n + 2: before it are `PADDING` and `UNKNOWN`."""

    column: str
    size: int

    kind: ClassVar[str] = "tokens"

    def reads(self) -> Mapping[str, Kind]:
        return {self.column: "array"}

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        found = raw.columns[self.column]
        if not isinstance(found, MappedRows) or len(found.shape) != 1:
            raise DataError(
                f"{raw.origin}: the column {self.column} must hold a stream of tokens, as in "
                "training."
            )
        self._refuse_unknown(raw, found)
        length = found.shape[0] - 1
        return {
            "tokens": Mapped(found, _Numbered(0)),
            length_of("tokens"): Constant(length, len(found)),
            "next": Mapped(found, _Numbered(1)),
            length_of("next"): Constant(length, len(found)),
        }

    def describe(self, info: Info) -> Info:
        names = tuple(f"<token {number}>" for number in range(self.size))
        return replace(info, vocabulary=(*SPECIAL_TOKENS, *names))

    def _refuse_unknown(self, raw: Raw, found: MappedRows) -> None:
        """Read the whole stream once, so that a token that is none shows before training."""
        first = 0
        for block in found.blocks():
            if int(block.max()) >= self.size:
                window, place = divmod(int((block >= self.size).argmax()), block.shape[1])
                position = int(found.rows[first + window]) * (block.shape[1] - 1) + place
                raise DataError(
                    f"{raw.origin}, token {position:,} (counted from 0): found "
                    f"{block[window, place]}; expected less than data.vocabulary={self.size}. Set "
                    "data.vocabulary to the size of the tokenizer's vocabulary, or data.dtype to "
                    "the type that the file was written with."
                )
            first += len(block)


@dataclass(frozen=True)
class _Numbered:
    """Windows [B, L + 1] become the numbers of L tokens, from the token `first` on."""

    first: int

    def __call__(self, windows: Tensor) -> Tensor:
        length = windows.shape[1] - 1
        tokens = windows[:, self.first : self.first + length].to(torch.int64)
        return tokens.add_(len(SPECIAL_TOKENS))
