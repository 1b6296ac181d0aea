"""Emoji of two vendors with their names: pictures and texts that belong together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from heliotrope.data.columns import Column, Raw, Texts, Values
from heliotrope.data.preparation import Pixels, Words
from heliotrope.data.sources.unprepared import Unprepared, vendored, vendored_rows

__all__ = ["emoji"]

_SIZE = 64


def emoji(*, vocabulary: int = 1000, max_words: int | None = 16) -> Unprepared:
    """Emoji with their names: 1,000 pictures of 500 for training, 150 of others for testing.

    Pictures are uint8 [N, 3, 64, 64]. Training has each emoji as both vendors draw it, the test
    split each as one of them does, so that a name occurs once there. Keys are the vendors.

    Source: Noto Emoji and Twemoji, with Unicode's names.

    Parameters
    ----------
    vocabulary
        How many words are known: the most frequent ones.
    max_words
        Words of each text that are read, from its beginning; null: all.
    """
    rows = vendored_rows("emoji.jsonl.gz")
    vendors = np.array([row["vendor"] for row in rows])
    images = np.empty((len(rows), 3, _SIZE, _SIZE), dtype=np.uint8)
    for vendor in np.unique(vendors).tolist():
        chosen = np.flatnonzero(vendors == vendor)
        tiles = [rows[row]["tile"] for row in chosen.tolist()]
        images[chosen] = _sheet(f"emoji-{vendor}.png")[tiles]
    columns: dict[str, Column] = {
        "image": Values(images),
        "text": Texts([row["name"] for row in rows]),
    }
    pairs = Raw(columns, vendors, "the emoji data")
    test = np.array([row["split"] == "test" for row in rows])
    return Unprepared(
        *pairs.parted(test),
        steps=(Pixels((3, _SIZE, _SIZE)), Words(vocabulary, max_words)),
        task="contrastive",
    )


def _sheet(name: str) -> NDArray[np.uint8]:
    """Return the tiles of a sheet, row by row: uint8 [tiles, 3, 64, 64]."""
    from PIL import Image

    with Image.open(vendored(name)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    down, across = pixels.shape[0] // _SIZE, pixels.shape[1] // _SIZE
    tiles = pixels.reshape(down, _SIZE, across, _SIZE, 3).transpose(0, 2, 4, 1, 3)
    return tiles.reshape(down * across, 3, _SIZE, _SIZE)
