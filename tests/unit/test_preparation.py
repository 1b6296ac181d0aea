"""Preparation: fitted by clients' sums to the digit, saved and read back, strict with new rows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from operator import add
from typing import Any, get_args

import numpy as np
import pytest
import torch

from heliotrope.config.data import Fit
from heliotrope.data.columns import Pieces, Raw, Strings, Texts, Values
from heliotrope.data.fields import Dense
from heliotrope.data.info import UNKNOWN, UNSEEN
from heliotrope.data.preparation import (
    Categories,
    Characters,
    Ids,
    Labels,
    Numbers,
    Pixels,
    Preparation,
    Statistics,
    Step,
    Target,
    Words,
    from_json,
)
from heliotrope.data.preparation.text import words_of
from heliotrope.errors import DataError

STEPS: tuple[Step, ...] = (
    Numbers(("age", "dose")),
    Categories(("sex", "site")),
    Pixels((1, 4, 4), white=16.0),
    Words(vocabulary=12, most=9),
    Characters(column="letters"),
    Labels(("2", "7", "10")),
    Target(),
    Ids("item", 40),
)
LETTERS = "abcdefg, .\n"


def rows(rng: np.random.Generator, count: int) -> Raw:
    """Draw rows of every kind of column, with numbers of all sizes and with missing ones."""
    dose = rng.normal(size=count) * 10.0 ** rng.integers(-44, 37, count)
    dose[rng.random(count) < 0.2] = np.nan
    words = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    stream = np.array([ord(letter) for letter in LETTERS], dtype=np.uint8)[
        rng.integers(0, len(LETTERS), 8 * count + 1)
    ]
    sexes = np.array(["f", "m", "x"])[rng.integers(0, 3, count)]
    sites = [None if rng.random() < 0.3 else f"site {rng.integers(9)}" for _ in range(count)]
    return Raw(
        {
            "age": Values(rng.integers(0, 100, count)),
            "dose": Values(dose),
            "sex": Strings.of(sexes.tolist()),
            "site": Strings.of(sites),
            "image": Values(rng.integers(0, 17, (count, 1, 4, 4), dtype=np.uint8)),
            "text": Texts([" ".join(rng.choice(words, rng.integers(1, 15))) for _ in range(count)]),
            "letters": Pieces(stream, np.arange(count) * 8, rng.integers(1, 9, count)),
            "label": Strings.of([str(n) for n in rng.choice([2, 10, 7], count)]),
            "target": Values(rng.normal(100, 30, count)),
            "item": Values(rng.integers(0, 40, count)),
        },
        keys=rng.integers(0, 5, count),
    )


def prepared(raw: Raw, fit: Fit = "training") -> Preparation:
    return Preparation.of(STEPS, Statistics.of(STEPS, raw, fit), fit, "classification")


def batch(preparation: Preparation, raw: Raw, **groups: Any) -> dict[str, torch.Tensor]:
    return preparation.apply(raw, **groups).take(torch.arange(len(raw)))


def cut(rng: np.random.Generator, count: int) -> list[np.ndarray[Any, Any]]:
    """Cut rows, shuffled, into groups of odd sizes, some of which are empty."""
    ends = np.sort(rng.integers(0, count + 1, rng.integers(0, 12)))
    return np.split(rng.permutation(count), ends)


@pytest.mark.parametrize("fit", get_args(Fit))
def test_what_clients_tell_adds_up_to_what_the_pooled_rows_tell(
    rng: np.random.Generator, fit: Fit
) -> None:
    for _ in range(10):
        raw = rows(rng, int(rng.integers(1, 300)))
        pooled = Statistics.of(STEPS, raw, fit)
        told = [Statistics.of(STEPS, raw.subset(group), fit) for group in cut(rng, len(raw))]
        together = reduce(add, told)
        assert together == pooled
        assert Preparation.of(STEPS, together, fit, "t") == Preparation.of(STEPS, pooled, fit, "t")
        backwards = reduce(add, reversed(told))
        assert backwards == pooled


def test_mean_and_deviation_are_rounded_once(rng: np.random.Generator) -> None:
    raw = rows(rng, 200)
    (fitted, *_) = prepared(raw).steps
    for place, name in enumerate(("age", "dose")):
        column = raw.columns[name]
        assert isinstance(column, Values)
        numbers = column.values.astype(np.float32)
        exact = [Fraction(float(number)) for number in numbers if not np.isnan(number)]
        mean = sum(exact) / len(exact)
        variance = sum((number - mean) ** 2 for number in exact) / len(exact)
        assert fitted.means[place] == float(mean)  # type: ignore[attr-defined]
        assert fitted.deviations[place] == math.sqrt(variance)  # type: ignore[attr-defined]


def test_numbers_are_scaled_and_what_is_missing_is_told(rng: np.random.Generator) -> None:
    age = rng.normal(50, 9, 500)
    age[::7] = np.nan
    raw = Raw({"age": Values(age), "one": Values(np.ones(500))})
    steps = (Numbers(("age", "one")),)
    preparation = Preparation.of(steps, Statistics.of(steps, raw, "training"), "training", "t")
    assert preparation.info().numeric == ("age", "one", "age is missing")
    numeric = preparation.apply(raw).take(torch.arange(500))["numeric"]
    assert numeric.dtype == torch.float32
    present = ~np.isnan(age)
    assert numeric[:, 0][present].mean().abs() < 1e-6
    assert (numeric[:, 0][present].std(correction=0) - 1).abs() < 1e-6
    assert numeric[:, 0][~present].abs().max() == 0  # the mean
    assert numeric[:, 1].abs().max() == 0  # a constant column does not become infinite
    np.testing.assert_array_equal(numeric[:, 2].numpy() == 1, ~present)


def test_a_column_in_which_training_has_one_number_or_none_tells_nothing_of_new_rows() -> None:
    """A weight that has learned nothing must not multiply raw numbers, such as a million."""
    columns = {"one": [5.0] * 4, "none": [np.nan] * 4, "age": [1.0, 2.0, 3.0, 4.0]}
    raw = Raw({name: Values(np.array(values)) for name, values in columns.items()})
    steps = (Numbers(tuple(columns)),)
    preparation = Preparation.of(steps, Statistics.of(steps, raw, "training"), "training", "t")
    new = Raw({name: Values(np.array([1e6])) for name in columns})
    assert batch(preparation, new)["numeric"][0, :2].tolist() == [0, 0]


def test_numbers_that_are_fitted_to_nothing_are_scaled_by_what_is_usual() -> None:
    columns = {"age": Values(np.array([30.0, np.nan, 70.0])), "beats": Values(np.arange(3.0))}
    raw, step = Raw(columns, None, "a table"), Numbers(("age", "beats"), ((50.0, 10.0), (1.0, 2.0)))
    numeric = step.fitted(None).fields(raw)["numeric"]
    assert isinstance(numeric, Dense)
    assert numeric.values.tolist() == [[-2, -0.5, 0, 0], [0, 0, 1, 0], [2, 0.5, 0, 0]]
    fitted = step.fitted(step.measure(raw))  # what is known of the rows comes first
    assert fitted.means == (50.0, 1.0)
    assert fitted.deviations[0] == pytest.approx(20.0)


def test_a_client_without_two_numbers_is_scaled_by_all(rng: np.random.Generator) -> None:
    """Its own deviation is 0, and its test rows would come in raw numbers."""
    pay = np.array([40_000.0, 60_000.0, 80_000.0, 50_000.0, np.nan])
    keys = np.array([0, 0, 0, 1, 2])
    pixels = rng.integers(0, 256, (5, 1, 4, 4), dtype=np.uint8)
    pixels[3] = 90
    raw = Raw({"pay": Values(pay), "image": Values(pixels)}, keys)
    steps = (Numbers(("pay",)), Pixels((1, 4, 4)))
    preparation = Preparation.of(steps, Statistics.of(steps, raw, "per_client"), "per_client", "t")
    new = Raw({"pay": Values(np.array([62_000.0] * 2)), "image": Values(pixels[:2])}, keys[3:])
    found = batch(preparation, new, training=raw)
    mean, deviation = np.nanmean(pay), np.nanstd(pay)
    wanted = [(62_000 - 50_000) / deviation, (62_000 - mean) / deviation]
    np.testing.assert_allclose(found["numeric"][:, 0], wanted, rtol=1e-6)
    scaled = (pixels[0] - 90.0) / pixels.std()
    np.testing.assert_allclose(found["image"][0], scaled, rtol=1e-4, atol=1e-5)


def test_words_of_any_script_stay_whole() -> None:
    """However their accents are written: Python's `\\w` takes a combining mark for an end."""
    assert words_of("हिन्दी भाषा।") == ["हिन्दी", "भाषा", "।"]
    assert words_of("Cafe\u0301, CAFÉ") == ["café", ",", "café"]
    assert words_of("İstanbul") == ["i̇stanbul"]  # its small letter is two characters
    assert words_of("می‌خواهم") == ["می‌خواهم"]
    assert words_of("don't £5 ❤️") == ["don", "'", "t", "£", "5", "❤️"]


def test_categories_and_words_of_new_rows_that_training_has_not_seen_share_a_number() -> None:
    raw = Raw({"sex": Strings.of(["m", "f", None, "m"]), "text": Texts(["A b.", "a", "a c", "b"])})
    steps = (Categories(("sex",)), Words(vocabulary=2))
    preparation = Preparation.of(steps, Statistics.of(steps, raw, "training"), "training", "t")
    info = preparation.info()
    assert info.categories == {"sex": 4}
    assert info.vocabulary == ("", "<unknown>", "a", "b")
    new = Raw({"sex": Strings.of(["x", None, "f"]), "text": Texts(["b a", "zebra", "a a a"])})
    found = preparation.apply(new).take(torch.arange(3))
    assert found["category"].tolist() == [[UNSEEN], [1], [2]]
    assert found["tokens"][0, :2].tolist() == [3, 2]
    assert found["tokens"][1, 0] == UNKNOWN
    assert found["tokens_length"].tolist() == [2, 1, 3]


def test_characters_are_followed_by_the_next() -> None:
    text = "to be or not to be?"
    stream = np.array([ord(c) for c in text], dtype=np.uint32)
    pieces = Pieces(stream, np.array([0, 8, 16]), np.array([8, 8, 2]))
    raw = Raw({"text": pieces})
    step = (Characters(),)
    preparation = Preparation.of(step, Statistics.of(step, raw, "training"), "training", "t")
    vocabulary = preparation.info().vocabulary
    found = preparation.apply(raw).take(torch.arange(3))
    for row, (start, length) in enumerate([(0, 8), (8, 8), (16, 2)]):
        for name, shift in (("tokens", 0), ("next", 1)):
            said = "".join(vocabulary[token] for token in found[name][row, :length].tolist())
            assert said == text[start + shift : start + shift + length]


def test_images_stay_bytes_until_a_batch_is_taken(rng: np.random.Generator) -> None:
    raw = rows(rng, 50)
    field = prepared(raw).apply(raw).fields["image"]
    assert isinstance(field, Dense)
    assert field.values.dtype == torch.uint8
    image = batch(prepared(raw), raw)["image"]
    assert image.mean().abs() < 1e-6
    assert (image.std(correction=0) - 1).abs() < 1e-6
    plain = batch(prepared(raw, "none"), raw)["image"]
    torch.testing.assert_close(plain, field.values.float() / 16)


def test_per_client_scales_each_client_by_its_own_rows(rng: np.random.Generator) -> None:
    raw = rows(rng, 200)
    groups = rng.integers(0, 3, 200)
    preparation = prepared(raw, "per_client")
    whole = batch(preparation, raw, groups=groups)
    for group in range(3):
        own = np.flatnonzero(groups == group)
        alone = batch(preparation, raw.subset(own), groups=np.zeros(len(own), dtype=np.int64))
        for name in ("numeric", "image"):
            torch.testing.assert_close(whole[name][own], alone[name])
        assert alone["image"].mean().abs() < 1e-5
    new = rows(rng, 50)  # of groups of their own: by all training rows
    alike = batch(preparation, new)
    for name in ("numeric", "image"):
        one = batch(preparation, new.subset(np.array([7])))[name][0]
        torch.testing.assert_close(one, alike[name][7], rtol=0, atol=0)
        others = replace(new, keys=new.keys + 9)  # type: ignore[operator]
        found = batch(preparation, others, training=raw)[name]
        torch.testing.assert_close(found, alike[name])
        found = batch(preparation, new, training=raw)[name]
        own = np.flatnonzero(raw.keys == 3)
        steps = tuple(step.by_group(step.measure(raw.subset(own))) for step in (STEPS[0], STEPS[2]))
        of_three = new.subset(np.flatnonzero(new.keys == 3))
        wanted = batch(Preparation(steps, "per_client", "t"), of_three)[name]
        torch.testing.assert_close(found[new.keys == 3], wanted)
    examples = preparation.apply(raw, groups)
    some = torch.tensor([5, 3, 150])
    torch.testing.assert_close(
        examples.subset(some).take(torch.arange(3))["image"], whole["image"][some]
    )


@pytest.mark.parametrize("fit", get_args(Fit))
def test_a_saved_preparation_is_the_same(rng: np.random.Generator, fit: Fit) -> None:
    raw, new = rows(rng, 100), rows(rng, 30)
    preparation = prepared(raw, fit)
    again = from_json(json.loads(json.dumps(preparation.to_json())))
    assert again == preparation
    assert again.info() == preparation.info()
    for name, values in batch(preparation, new).items():
        torch.testing.assert_close(batch(again, new)[name], values, rtol=0, atol=0)


def test_nothing_is_told_where_nothing_is_fitted(rng: np.random.Generator) -> None:
    raw = rows(rng, 100)
    told = {fit: Statistics.of(STEPS, raw, fit).told(STEPS) for fit in get_args(Fit)}
    assert told["none"] == ()
    assert told["training"][0] == "mean, deviation and number of values of 2 columns"
    assert "counts of 26 words" in told["training"]
    assert "mean and deviation of the pixels" in told["training"]
    assert "mean and deviation of the target" in told["training"]
    assert set(told["none"]) < set(told["per_client"]) < set(told["training"])


def test_a_message_is_as_long_as_documented(rng: np.random.Generator) -> None:
    raw = rows(rng, 100)
    sizes = [
        len(Statistics.of((step,), raw, "training").to_bytes())
        for step in (Numbers(("age", "dose")), Pixels((1, 4, 4)), Categories(("sex",)), Labels(()))
    ]
    assert sizes == [8 + 2 * 132, 24, 4 + 3 * 12 + len("fmx"), 0]


def test_words_may_be_long_and_hold_lone_surrogates() -> None:
    told = ["\ud800"] * 3 + ["x" * 70_000]
    raw = Raw({"text": Texts(told), "word": Strings.of(told)})
    steps: tuple[Step, ...] = (Words(vocabulary=9), Categories(("word",)))
    statistics = Statistics.of(steps, raw, "training")
    assert len(statistics.to_bytes()) == 2 * (4 + 2 * (4 + 8) + 3 + 70_000)
    found = batch(Preparation.of(steps, statistics, "training", "t"), raw)
    assert found["tokens"][:, 0].tolist() == [2, 2, 2, 3]
    assert found["category"][:, 0].tolist() == [3, 3, 3, 2]
    hashed = Preparation.of(steps, Statistics.of(steps, raw, "none"), "none", "t")
    assert batch(hashed, raw)["tokens"][:3, 0].unique().numel() == 1


def test_new_rows_may_lack_what_is_to_be_predicted(rng: np.random.Generator) -> None:
    raw = rows(rng, 20)
    new = Raw({n: c for n, c in raw.columns.items() if n not in ("label", "target")})
    found = batch(prepared(raw), new)
    assert {"label", "target"}.isdisjoint(found)
    torch.testing.assert_close(found["numeric"], batch(prepared(raw), raw)["numeric"])


REFUSED: dict[str, tuple[str, Any, list[str]]] = {
    "column missing": ("age", None, ["no column age", "It has"]),
    "words for numbers": ("age", Strings.of(["a"] * 20), ["column age must hold numbers"]),
    "numbers for words": ("sex", Values(np.ones(20)), ["column sex must hold words"]),
    "too large": (
        "dose",
        Values(np.r_[np.ones(7), 1e39, np.ones(12)]),
        ["row 8, column dose", "too large for float32"],
    ),
    "another size of image": (
        "image",
        Values(np.zeros((20, 3, 8, 8), np.uint8)),
        ["images of 3x8x8", "1x4x4 is what the model takes"],
    ),
    "a class of its own": (
        "label",
        Strings.of(["2"] * 18 + ["77"] * 2),
        ["row 19, column label: the class 77 (2 such rows)", "2, 7, 10"],
    ),
    "no label": ("label", Strings.of(["2", None] * 10), ["row 2", "label is missing (10 such"]),
    "half a class": ("label", Values(np.r_[2.0, 0.7, np.ones(18)]), ["row 2", "found label 0.7"]),
    "a class that is NaN": ("label", Values(np.r_[2.0, np.nan, np.ones(18)]), ["row 2", "nan;"]),
    "no target": ("target", Values(np.r_[1.0, np.nan, np.ones(18)]), ["row 2", "is missing"]),
    "an empty text": ("text", Texts(["a"] * 19 + [" "]), ["row 20: the text has no words"]),
    "an item out of range": ("item", Values(np.arange(21, 41)), ["row 20", "found 40", "0 to 39"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_do_not_fit_are_refused_by_row_and_column(
    rng: np.random.Generator, case: str
) -> None:
    name, column, words = REFUSED[case]
    preparation = prepared(rows(rng, 200))
    raw = rows(rng, 20)
    columns = {**raw.columns, name: column}
    if column is None:
        del columns[name]
    with pytest.raises(DataError) as caught:
        preparation.apply(Raw(columns, origin="new.csv"))
    for word in ("new.csv", *words):
        assert word in str(caught.value)


def test_constant_images_cannot_be_scaled() -> None:
    raw = Raw({"image": Values(np.full((9, 1, 4, 4), 51, np.uint8))})
    step = (Pixels((1, 4, 4)),)
    statistics = Statistics.of(step, raw, "training")
    with pytest.raises(DataError, match=r"all hold one value, 0\.2.*data\.fit=none"):
        Preparation.of(step, statistics, "training", "t")


def test_a_step_of_another_version_is_refused() -> None:
    with pytest.raises(DataError, match="step unheard_of"):
        from_json({"fit": "training", "task": "t", "steps": [{"kind": "unheard_of", "a": 1}]})
