"""Make emoji-noto.png, emoji-twemoji.png and emoji.jsonl.gz: pictures of two vendors, with names.

    python scripts/vendor/emoji.py GOOGLE TWITTER
    # the packages emoji-datasource-google and emoji-datasource-twitter, 16.0.0, unpacked

Emoji that both vendors have, without flags and skin tones, are drawn by the SHA-256 of their
code points: 500 for training, with the pictures of both vendors, and 150 for testing, with the
picture of one vendor each, so that a name occurs once in the test split. A name for testing has
only words that occur in training: a new word tells a model nothing. Pictures of 64x64 are
put on white and reduced to 128 colours a sheet, row by row of 25 tiles. A line of the table is
a picture: its vendor's sheet, its tile there, its split and its name.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from _write import FOLDER, drawn, write_gzip
from PIL import Image

TRAIN, TEST = 500, 150
SIZE, ACROSS, COLOURS = 64, 25, 128


def on_white(path: Path) -> Image.Image:
    """Return a picture without transparency."""
    picture = Image.open(path).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return ground.convert("RGB")


def words(emoji: dict[str, str]) -> list[str]:
    """Return the words of a name."""
    return re.findall(r"\w+", emoji["name"].lower())


def main(google: Path, twitter: Path) -> None:
    """Write the sheets and the table."""
    pictures = {
        "noto": google / "package/img/google/64",
        "twemoji": twitter / "package/img/twitter/64",
    }
    listed = json.loads((google / "package/emoji.json").read_text())
    listed = [
        emoji
        for emoji in listed
        if emoji["has_img_google"] and emoji["has_img_twitter"]
        if emoji["category"] not in ("Flags", "Component")
    ]
    listed.sort(key=lambda emoji: drawn(emoji["unified"]))
    known = {word for emoji in listed[:TRAIN] for word in words(emoji)}
    new = [emoji for emoji in listed[TRAIN:] if known.issuperset(words(emoji))][:TEST]
    rows = []
    for place, vendor in enumerate(pictures):
        train = listed[:TRAIN]
        test = new[place :: len(pictures)]
        down = -(-len(train + test) // ACROSS)
        sheet = Image.new("RGB", (ACROSS * SIZE, down * SIZE), "white")
        for tile, emoji in enumerate(train + test):
            corner = (tile % ACROSS * SIZE, tile // ACROSS * SIZE)
            sheet.paste(on_white(pictures[vendor] / emoji["image"]), corner)
            split = "train" if tile < TRAIN else "test"
            name = emoji["name"].lower()
            rows.append({"vendor": vendor, "tile": tile, "split": split, "name": name})
        path = FOLDER / f"emoji-{vendor}.png"
        sheet.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size:,} bytes, {len(train + test)} pictures")
    write_gzip("emoji.jsonl.gz", "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
