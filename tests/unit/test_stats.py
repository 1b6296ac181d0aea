"""`heliotrope stats`: what is in the data, how clients differ, and which rows occur twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from heliotrope.cli import main
from heliotrope.data import Dense, Examples, Info, Partition, Ragged, Traits, partition
from heliotrope.data.columns import Pieces, Raw, Strings, Texts, Values
from heliotrope.data.summary import (
    duplicates,
    feature_skew,
    group_counts,
    missing_shares,
    skew,
    summarize,
)
from tests.unit.test_partition import dirichlet


def halves(count: int) -> Partition:
    return Partition(np.arange(count), np.array([0, count // 2, count]))


def test_columns_are_summed_up() -> None:
    raw = Raw(
        {
            "age": Values(np.array([20.0, np.nan, 40.0])),
            "site": Strings.of(["b", None, "a"]),
            "note": Texts(["one two", "", "three"]),
            "image": Values(np.full((3, 1, 2, 2), 7, np.uint8)),
            "text": Pieces(np.arange(9, dtype=np.uint8), np.array([0, 3, 6]), np.array([3, 3, 2])),
        }
    )
    found = [(c.name, c.kind, c.missing, c.content) for c in summarize(raw)]
    assert found == [
        ("age", "number", 1, "20 to 40, mean 30"),
        ("site", "words", 1, "a 1, b 1"),
        ("note", "text", 1, "0 to 2 words, 1 in the middle"),
        ("image", "image", 0, "1x2x2, 7 to 7"),
        ("text", "characters", 0, "2 to 3 characters, 8 in all"),
    ]
    assert missing_shares(raw, Partition(np.arange(3), np.array([0, 2, 3]))).tolist() == [0.5, 0]


def test_rows_that_occur_twice_are_counted(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (20, 1, 3, 3), dtype=np.uint8)
    train = Raw({"image": Values(images[[0, 1, 2, 3, 0, 1]]), "label": Values(np.arange(6))})
    test = Raw({"image": Values(images[[3, 7, 8]])})
    owners = np.array([0, 0, 1, 1, 0, 1])  # 0 twice at one client, 1 at both
    found = duplicates(train, {"test": test}, ["image"], owners)
    assert (found.within, found.shared, found.leaked) == (2, 1, {"test": 1})


def test_skew_is_the_share_that_would_have_to_be_others() -> None:
    counts = group_counts(np.array([0, 0, 1, 1]), halves(4), 2)
    assert counts.tolist() == [[2, 0], [0, 2]]
    assert skew(counts).tolist() == [0.5, 0.5]
    assert skew(group_counts(np.array([0, 1, 0, 1]), halves(4), 2)).tolist() == [0, 0]


def test_the_smaller_alpha_the_larger_the_skew(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 10, 5000)
    seed = int(rng.integers(2**31))
    middle = [
        np.median(
            skew(group_counts(labels, partition(dirichlet(20, a), Traits(5000, labels), seed), 10))
        )
        for a in (0.05, 0.5, 50.0)
    ]
    assert middle[0] > middle[1] > middle[2]


def test_inputs_of_clients_are_compared(rng: np.random.Generator) -> None:
    tokens = np.where(np.arange(400) < 200, 2, 3)
    examples = Examples(
        {
            "numeric": Dense(torch.cat([torch.zeros(50, 1), torch.ones(50, 1)])),
            "category": Dense(torch.from_numpy(rng.permutation(np.arange(100) % 2)[:, None])),
            "image": Dense(torch.from_numpy(rng.integers(0, 256, (100, 1, 2, 2), dtype=np.uint8))),
            "tokens": Ragged(tokens, np.arange(101) * 4),
        }
    )
    info = Info(numeric=("age",), categories={"sex": 2}, vocabulary=("", "?", "a", "b"))
    found = feature_skew(examples, info, halves(100))
    assert found["age"].tolist() == [1, 1]  # both means are a deviation away from the whole
    assert found["tokens"].tolist() == [0.5, 0.5]
    assert found["sex"].max() < 0.3
    assert found["brightness"].max() < 0.5


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("data=heart", "federated/partition=natural", "federated.clients_per_round=4"),
            ("thal", "393 (53.4%)", "4 clients", "Zurich and Basel", "disease 92"),
        ),
        (("data=diabetes",), ("10 clients", "25 to 346", "bmi")),
        (("data=digits",), ("1x8x8", "1,294 training, 144 validation, 359 test", "0 of 359 test")),
        (
            ("data=shakespeare", "federated/partition=natural"),
            ("115 clients", "Macbeth: LADY MACBETH", "277,643 in all"),
        ),
        (("data=spam",), ("1 to 764 words", "tokens (8.54%) do not occur in the training split")),
    ],
)
def test_the_command_prints_and_draws(
    overrides: tuple[str, ...],
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "data.svg"
    assert main(["stats", *overrides, f"output={output}"]) == 0
    said = capsys.readouterr().out
    for word in words:
        assert word in said
    assert "<svg" in output.read_text()


def test_a_partition_that_is_impossible_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "data=digits", "federated/partition=natural"]) == 2
    assert "no groups" in capsys.readouterr().err
