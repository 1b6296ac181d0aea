"""Three plays of Shakespeare by speaker: text whose clients speak."""

from __future__ import annotations

from heliotrope.data.sources.streams import next_characters
from heliotrope.data.sources.unprepared import TEST_FRACTION, Unprepared, vendored_rows
from heliotrope.errors import DataError

__all__ = ["shakespeare"]


def shakespeare(*, length: int = 80, min_characters: int = 200) -> Unprepared:
    """Three plays by speaker, whose next character is to be told.

    Windows go over all that a speaker of a play says, speech by speech. The last fifth of a
    speaker's windows is in the test split. Keys are play and speaker: 115 with 200 characters or
    more.

    Source: Julius Caesar, Macbeth and Richard III; the task of McMahan et al. (2017).

    Parameters
    ----------
    length
        Characters of a window.
    min_characters
        Speakers that say less are left out.

    Raises
    ------
    DataError
        If no speaker has `data.min_characters`.
    """
    speeches: dict[str, list[str]] = {}
    for row in vendored_rows("shakespeare.jsonl.gz"):
        speeches.setdefault(f"{row['play']}: {row['speaker']}", []).append(row["text"])
    texts = {speaker: "\n".join(said) + "\n" for speaker, said in speeches.items()}
    least = max(min_characters, 2)
    texts = {speaker: text for speaker, text in texts.items() if len(text) >= least}
    if not texts:
        raise DataError(
            f"data.min_characters={min_characters}, but no speaker says so much. Lower it."
        )
    return next_characters(texts, length, TEST_FRACTION, "the plays")
