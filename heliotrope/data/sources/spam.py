"""Mails that are spam or not: texts of very different lengths."""

from __future__ import annotations

import numpy as np

from heliotrope.data.columns import Column, Raw, Texts, Values
from heliotrope.data.preparation import Labels, Words
from heliotrope.data.sources.unprepared import TEST_FRACTION, Unprepared, held_out, vendored_rows

__all__ = ["spam"]

_CLASSES = ("ham", "spam")


def spam(*, vocabulary: int = 5000, max_words: int | None = 200) -> Unprepared:
    """3,000 mails as words, 30 % of them spam.

    A fifth of each class becomes the test split, the same in every run.

    Source: the public mail corpus of Apache SpamAssassin.

    Parameters
    ----------
    vocabulary
        How many words are known: the most frequent ones.
    max_words
        Words of each text that are read, from its beginning; null: all.
    """
    rows = vendored_rows("spam.jsonl.gz")
    label = np.array([_CLASSES.index(row["label"]) for row in rows])
    columns: dict[str, Column] = {
        "text": Texts([row["text"] for row in rows]),
        "label": Values(label),
    }
    mails = Raw(columns, origin="the spam data")
    test = held_out(TEST_FRACTION, label, count=len(rows))
    return Unprepared(
        *mails.parted(test),
        steps=(Words(vocabulary, max_words), Labels(_CLASSES)),
        task="classification",
        drawn=True,
    )
