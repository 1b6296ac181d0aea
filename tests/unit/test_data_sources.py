"""The real sets that come along: what is in them, how they are split, and who holds what."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from heliotrope.data.columns import Pieces, Raw, Strings, Values
from heliotrope.data.preparation import Preparation, Statistics
from heliotrope.data.sources.collect import collect
from heliotrope.data.sources.diabetes import diabetes
from heliotrope.data.sources.emoji import emoji
from heliotrope.data.sources.heart import heart
from heliotrope.data.sources.movielens import MOVIELENS, movielens
from heliotrope.data.sources.shakespeare import shakespeare
from heliotrope.data.sources.spam import spam
from heliotrope.data.sources.unprepared import Unprepared, held_out, vendored
from heliotrope.errors import DataError


def values(raw: Raw, name: str) -> np.ndarray[Any, Any]:
    column = raw.columns[name]
    assert isinstance(column, Values)
    return column.values


def batch(found: Unprepared, split: Raw) -> dict[str, torch.Tensor]:
    statistics = Statistics.of(found.steps, found.train, "training")
    preparation = Preparation.of(found.steps, statistics, "training", found.task)
    return preparation.apply(split).take(torch.arange(len(split)))


def test_heart_has_four_hospitals_in_both_splits() -> None:
    found = heart()
    both = np.concatenate([found.train.keys, found.test.keys])  # type: ignore[arg-type]
    assert Counter(both.tolist()) == {
        "Cleveland": 303,
        "Budapest": 294,
        "Long Beach": 200,
        "Zurich and Basel": 123,
    }
    for hospital in set(both.tolist()):
        here, there = found.train.keys == hospital, found.test.keys == hospital
        assert abs(there.sum() / (here.sum() + there.sum()) - 0.2) < 0.02
        sick = values(found.train, "label")[here].mean(), values(found.test, "label")[there].mean()
        assert abs(sick[0] - sick[1]) < 0.05
    # Facts of the source's own description.
    everything = np.concatenate([values(found.train, "age"), values(found.test, "age")])
    assert (everything.min(), everything.max()) == (28, 77)
    zurich = found.train.subset(np.flatnonzero(found.train.keys == "Zurich and Basel"))
    assert np.isnan(values(zurich, "chol")).all()  # not measured there
    thal = found.train.columns["thal"]
    assert isinstance(thal, Strings)
    assert (thal.codes == -1).any()


def test_diabetes_has_the_same_range_in_both_splits() -> None:
    found = diabetes()
    assert (len(found.train), len(found.test)) == (354, 88)
    train, test = values(found.train, "target"), values(found.test, "target")
    assert (min(train.min(), test.min()), max(train.max(), test.max())) == (25, 346)
    assert abs(train.mean() - test.mean()) < 2


def test_spam_is_a_third_and_no_text_is_in_both_splits() -> None:
    found = spam(vocabulary=300, max_words=50)
    assert (len(found.train), len(found.test)) == (2400, 600)
    for split in (found.train, found.test):
        assert abs(values(split, "label").mean() - 0.3) < 0.01
    assert not set(found.train.columns["text"].texts) & set(  # type: ignore[attr-defined]
        found.test.columns["text"].texts  # type: ignore[attr-defined]
    )
    taken = batch(found, found.test)
    assert taken["tokens_length"].max() == 50
    assert 2 < taken["tokens"].max() < 302


def test_speakers_say_their_own_text_and_windows_stay_within_it() -> None:
    length = 80
    found = shakespeare(length=length)
    said: dict[str, str] = {}
    with gzip.open(vendored("shakespeare.jsonl.gz"), "rt") as file:
        for row in map(json.loads, file):
            key = f"{row['play']}: {row['speaker']}"
            said[key] = said.get(key, "") + row["text"] + "\n"
    whole: dict[str, str] = {}
    for split in (found.train, found.test):  # in this order: the end of each is for testing
        pieces, keys = split.columns["text"], split.keys
        assert isinstance(pieces, Pieces)
        assert keys is not None
        rows = zip(keys.tolist(), pieces.starts.tolist(), pieces.lengths.tolist(), strict=True)
        for key, start, count in rows:
            text = "".join(map(chr, pieces.stream[start : start + count + 1].tolist()))
            assert 1 <= count <= length
            assert whole.get(key, text[0])[-1] == text[0]  # the next goes on where the last ends
            whole[key] = whole.get(key, "")[:-1] + text
    assert whole == {key: text for key, text in said.items() if len(text) >= 200}
    assert len(whole) == 115
    lengths = np.concatenate(
        [split.columns["text"].lengths for split in (found.train, found.test)]  # type: ignore[attr-defined]
    )
    assert (lengths < length).sum() <= len(whole)  # the last of each alone
    share = len(found.test) / (len(found.train) + len(found.test))
    assert 0.15 < share <= 0.2


def test_a_limit_that_no_speaker_reaches_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.min_characters=1000000"):
        shakespeare(min_characters=10**6)


def test_emoji_names_of_the_test_split_are_new_and_occur_once() -> None:
    found = emoji()
    train, test = (
        list(split.columns["text"].texts)  # type: ignore[attr-defined]
        for split in (found.train, found.test)
    )
    assert (len(train), len(set(train)), len(test)) == (1000, 500, 150)
    assert len(set(test)) == 150
    assert not set(train) & set(test)
    assert Counter(found.train.keys.tolist()) == {"noto": 500, "twemoji": 500}  # type: ignore[union-attr]
    assert Counter(found.test.keys.tolist()) == {"noto": 75, "twemoji": 75}  # type: ignore[union-attr]
    images = values(found.train, "image")
    assert images.shape == (1000, 3, 64, 64)
    # A red heart is red with both vendors, and the corner of a tile is white.
    hearts = images[[row for row, name in enumerate(train) if name == "heavy black heart"]]
    assert len(hearts) == 2
    assert (hearts[:, 0, 32, 32] > 150).all()
    assert (hearts[:, 1, 32, 32] < 100).all()
    assert (hearts[:, :, 0, 0] > 240).all()
    assert batch(found, found.test)["tokens"].shape[0] == 150


def test_movielens_holds_out_a_fifth_of_each_user() -> None:
    try:
        collect(MOVIELENS, None, download=False)
    except DataError:
        pytest.skip(f"needs movielens, to be had with: {MOVIELENS.commands()[0]}")
    found = movielens(download=False)
    assert (len(found.train), len(found.test)) == (80_000, 20_000)
    for split in (found.train, found.test):
        assert len(np.unique(split.keys)) == 943  # type: ignore[arg-type]
        assert abs(values(split, "rating").mean() - 3.53) < 0.02
    assert set(np.unique(values(found.train, "rating"))) == {1, 2, 3, 4, 5}
    taken = batch(found, found.train)
    assert (taken["user"].max(), taken["item"].max()) == (942, 1681)


def test_what_is_held_out_has_every_group_and_range() -> None:
    rng = np.random.default_rng(3)
    group, number = rng.integers(0, 4, 400), rng.normal(size=400)
    mask = held_out(0.2, group, number, count=400)
    assert mask.sum() == 80
    for value in range(4):
        inside = np.flatnonzero(group == value)
        by_number = mask[inside[np.argsort(number[inside])]]
        gaps = np.diff(np.flatnonzero(by_number))
        assert set(gaps.tolist()) == {5}
    assert held_out(0.0, count=10).sum() == 0
    assert held_out(0.5, count=10).sum() == 5
