"""Long texts cut into windows of characters, none of which crosses from one text into another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from heliotrope.data.columns import Pieces, Raw
from heliotrope.data.preparation import Characters
from heliotrope.data.sources.unprepared import Unprepared

__all__ = ["next_characters"]


def next_characters(
    texts: Mapping[str, str], length: int, test_fraction: float, origin: str
) -> Unprepared:
    """Return windows of `length` characters, the last of a text shorter, each to be continued.

    Parameters
    ----------
    texts
        Key, such as a speaker or a file -> text, of two characters or more. Keys are those of
        the examples.
    test_fraction
        The share of each text's windows, at its end, that are in the test split; of a text with
        few windows none may be.
    """
    lengths = np.array([len(text) for text in texts.values()], dtype=np.int64)
    begins = np.cumsum(lengths) - lengths
    stream = np.frombuffer(
        "".join(texts.values()).encode("utf-32-le", "surrogatepass"), dtype=np.uint32
    )
    predicted = lengths - 1  # all characters of a text but the first
    windows = -(-predicted // length)
    owner = np.repeat(np.arange(len(texts)), windows)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(windows) - windows, windows)
    pieces = Pieces(
        stream.astype(np.min_scalar_type(int(stream.max(initial=0)))),
        begins[owner] + number * length,
        np.minimum(length, predicted[owner] - number * length),
    )
    raw = Raw({"text": pieces}, np.array(list(texts))[owner], origin)
    test = number >= windows[owner] - np.floor(windows[owner] * test_fraction)
    return Unprepared(
        *raw.parted(test),
        steps=(Characters(),),
        task="next_token",
        drawn=True,
    )
