"""Folds: how examples are divided, what is refused, and what each fold's run is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heliotrope.config import Run
from heliotrope.config.folds import Fold, check_folds
from heliotrope.data import Dataset, load
from heliotrope.data.columns import Items, Pieces, Raw, Strings, Texts, Values
from heliotrope.data.fingerprint import fingerprint
from heliotrope.data.folds import holding_out, undivided
from heliotrope.data.mapped import MappedArray, MappedRows
from heliotrope.data.preparation import Labels, Target
from heliotrope.data.sources.unprepared import Unprepared
from heliotrope.data.stored import Selection, StoredNumbers
from heliotrope.errors import ConfigError, DataError
from heliotrope.runs.private_sums import settings_of_sums
from tests.support import Started, Type, compose, fresh_seed


def rows_of(
    labels: np.ndarray | None, keys: np.ndarray | None = None, count: int = 0, classes: int = 0
) -> Unprepared:
    """Return rows that hold their own number, with labels or targets."""
    count = count if labels is None else len(labels)
    columns = {"row": Values(np.arange(count))}
    if labels is None:
        columns["target"] = Values(np.linspace(0, 1, count))
    else:
        columns["label"] = Values(labels)
    names = tuple(map(str, range(classes or (0 if labels is None else int(labels.max()) + 1))))
    steps = (Target(),) if labels is None else (Labels(names),)
    raw = Raw(columns, keys)
    return Unprepared(raw, raw.subset(slice(0, 0)), steps, "classification")


def numbers(raw: Raw) -> list[int]:
    column = raw.columns["row"]
    assert isinstance(column, Values)
    return [int(value) for value in column.values]


def held_out_rows(found: Unprepared, count: int, by: str, run_seed: int = 0) -> list[list[int]]:
    """Return the rows that each fold holds out, once it is seen that it trains on the others."""
    parts = []
    for index in range(count):
        held_out = holding_out(found, Fold(count, index, by), run_seed, "d")
        assert sorted(numbers(held_out.train) + numbers(held_out.test)) == numbers(found.train)
        parts.append(numbers(held_out.test))
    assert sorted(row for part in parts for row in part) == numbers(found.train)
    return parts


@pytest.mark.parametrize("by", ["auto", "label", "none", "key"])
def test_every_row_is_tested_once(by: str) -> None:
    seed = fresh_seed()
    draw = np.random.default_rng(seed)
    count, folds = int(draw.integers(40, 300)), int(draw.integers(2, 9))
    labels = draw.choice(4, size=count, p=(0.6, 0.2, 0.15, 0.05))
    keys = draw.choice([f"k{n}" for n in range(20)], size=count)
    parts = held_out_rows(rows_of(labels, keys), folds, by, seed)
    if by == "key":
        owners = [set(keys[part]) for part in parts]
        assert sum(map(len, owners)) == len(set(keys)), "a key is in two folds"
        return
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    if by != "none":
        shares = np.array([np.bincount(labels[part], minlength=4) for part in parts])
        assert (shares.max(0) - shares.min(0) <= 1).all()


def test_folds_follow_from_the_seed_alone() -> None:
    found = rows_of(np.arange(60) % 3)
    assert held_out_rows(found, 3, "auto", 5) == held_out_rows(found, 3, "label", 5)
    assert held_out_rows(found, 3, "auto", 5) != held_out_rows(found, 3, "auto", 6)
    noted = holding_out(found, Fold(3, 1, "auto"), 5, "d").notes[-1]
    assert noted.startswith("fold 1 of 0 to 2")
    assert "40 examples for training, 20 for testing" in noted


def test_as_many_folds_as_rows_test_one_each() -> None:
    parts = held_out_rows(rows_of(None, count=7), 7, "auto")
    assert sorted(parts) == [[row] for row in range(7)]


def test_targets_are_divided_at_random() -> None:
    found = rows_of(None, count=30)
    assert held_out_rows(found, 3, "auto") == held_out_rows(found, 3, "none")


def test_keys_without_classes_are_divided_evenly() -> None:
    keys = np.repeat(np.arange(6), (10, 10, 10, 10, 10, 10))
    parts = held_out_rows(rows_of(None, keys, count=60), 3, "key")
    assert [len(part) for part in parts] == [20, 20, 20]


def test_a_rare_class_is_told_of_and_an_empty_one_is_none() -> None:
    labels = np.array([0] * 20 + [2] * 3)
    found = rows_of(labels, classes=4)
    held_out_rows(found, 5, "label")
    told = holding_out(found, Fold(5, 0, "label"), 0, "d").notes[-1]
    assert told == "some of 5 folds have no example of class 2 (3) for testing"


def test_classes_that_keys_keep_out_of_a_fold_are_told_of() -> None:
    keys = np.repeat(np.arange(3), 20)
    labels = np.where(keys == 0, 0, np.where(keys == 1, np.arange(60) % 2, 1))
    labels[-1] = 2  # of one key alone
    notes = holding_out(rows_of(labels, keys), Fold(3, 0, "key"), fresh_seed(), "d").notes
    assert notes[-2:] == (
        "some of 3 folds have no example of class 0 (30), 1 (29), 2 (1) for testing",
        "some of 3 folds have no example of class 2 (1) for training",
    )
    balanced = holding_out(rows_of(np.arange(60) % 3, keys), Fold(3, 0, "key"), 0, "d").notes
    assert not any("no example" in note for note in balanced)


@pytest.mark.parametrize(
    ("found", "count", "by", "message"),
    [
        (rows_of(None, count=3), 4, "auto", r"folds=4, but data=d has 3 example.* at most 3"),
        (rows_of(np.arange(6) % 3), 3, "label", r"no class .* the largest has 2.*folds_by=none"),
        (rows_of(None, count=9), 3, "label", "folds_by=label, but .* no classes"),
        (rows_of(None, count=9), 3, "key", "folds_by=key, but .* no natural keys"),
        (rows_of(None, np.zeros(9), count=9), 2, "key", r"data=d has 1 natural key"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    found: Unprepared, count: int, by: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        holding_out(found, Fold(count, 0, by), 0, "d")


@pytest.mark.parametrize(
    ("folds", "fold", "by", "message"),
    [
        (1, None, "auto", r"folds=1 leaves no part to train on"),
        (-3, None, "auto", r"folds=-3 leaves no part"),
        (3, 3, "auto", r"fold=3 is none of the 3 folds.* 0 to 2"),
        (3, -1, "auto", r"fold=-1 is none"),
        (None, 0, "auto", r"fold=0 has no effect without folds"),
        (None, None, "key", r"folds_by=key has no effect without folds"),
        (3, None, "keys", r"folds_by=keys is not one of .* 'key'"),
    ],
)
def test_keys_that_do_not_belong_together_are_refused(
    folds: int | None, fold: int | None, by: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_folds(folds, fold, by, None)
    check_folds(3, None, "auto", None)
    with pytest.raises(ConfigError, match=r"privacy\.selection=poisson .* folds=3"):
        check_folds(3, None, "auto", "poisson")


def test_true_is_no_number_of_folds(type_: Type, capsys: pytest.CaptureFixture[str]) -> None:
    job = Started()
    assert type_("federated", "folds=true", job=job) == 2
    assert "folds=true" in capsys.readouterr().err
    assert job.runs == []


def test_a_stream_of_tokens_is_refused(tmp_path: Path) -> None:
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "t.bin")
    given = (f"data.path={tmp_path}/t.bin", "data.vocabulary=1000", "folds=2", "fold=0")
    run = compose("distributed", "data=token_stream", "model=gpt", *given)
    with pytest.raises(DataError, match="folds cannot divide data=token_stream"):
        _loaded(run)


def _loaded(run: Run) -> Dataset:
    return load(run.data, run.seed, fold=run.data_fold, hashed=True)


def test_a_preparation_is_fitted_to_the_training_part_of_its_fold() -> None:
    runs = [compose("federated", "data=diabetes", "folds=2", f"fold={fold}") for fold in (0, 1)]
    datasets = [_loaded(run) for run in runs]
    for dataset in datasets:
        rows = torch.arange(len(dataset.train))
        means = dataset.train.take(rows)["numeric"].mean(0)
        assert means.abs().max() < 1e-5
        others = dataset.test.take(torch.arange(len(dataset.test)))["numeric"].mean(0)
        assert others.abs().max() > 1e-3
    assert datasets[0].info.target_mean != datasets[1].info.target_mean
    assert datasets[0].content == datasets[1].content, "a ledger would take them for other people"


def test_validation_comes_out_of_the_training_part() -> None:
    run = compose("federated", "data=heart", "folds=4", "fold=3", "data.validation_fraction=0.1")
    found = _loaded(run)
    assert (len(found.train), len(found.validation), len(found.test)) == (621, 69, 230)


def test_a_test_set_that_the_data_bring_is_in_no_fold(tmp_path: Path) -> None:
    for name, count, first in (("train", 20, 0), ("test", 10, 1000)):
        x = np.arange(first, first + count, dtype=np.float64)[:, np.newaxis]
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.linspace(0, 1, count))
    path = ("data=arrays", "data.fit=none", f"data.path={tmp_path}/train.npz", "folds=2")
    seen = []
    for fold in (0, 1):
        run = compose("federated", *path, f"data.test={tmp_path}/test.npz", f"fold={fold}")
        dataset = _loaded(run)
        seen += dataset.test.take(torch.arange(len(dataset.test)))["numeric"][:, 0].tolist()
    assert sorted(seen) == list(range(20))


def test_noise_of_two_folds_is_never_the_same() -> None:
    runs = [compose("federated", "folds=2", f"fold={fold}") for fold in (0, 1)]
    one, two = (settings_of_sums(run, "federated") for run in runs)
    assert one != two


def _columns(folder: Path, count: int) -> Mapping[str, Any]:
    stream = np.arange(1000, dtype=np.uint16)
    np.save(folder / "x.npy", np.arange(count * 2).reshape(count, 2))
    array, selection = MappedArray.npy(folder / "x.npy"), Selection(range(count))
    given = np.arange(count)
    return {
        "values": Values(given),
        "strings": Strings.of([str(n % 3) if n % 5 else None for n in range(count)]),
        "texts": Texts([str(n) for n in range(count)]),
        "pieces": Pieces(stream, given * 4, given % 4 + 1),
        "items": Items([(float(n), n) for n in range(count)], given, (), np.dtype(np.float32)),
        "mapped": MappedRows.of(array),
        "stored": StoredNumbers(array, 0, selection),
        "stored too": StoredNumbers(array, 1, selection),
    }


def test_rows_that_were_drawn_for_testing_go_back_to_their_places(tmp_path: Path) -> None:
    seed = fresh_seed()
    draw = np.random.default_rng(seed)
    whole = Raw(_columns(tmp_path, 23), draw.integers(3, size=23), numbers=np.arange(23) * 2 + 5)
    found = Unprepared(*whole.parted(draw.random(23) < 0.3), (), "classification", drawn=True)
    again = undivided(found, "d")
    assert fingerprint(again.train) == fingerprint(whole), f"seed {seed}"
    assert again.train.keys is not None
    assert whole.keys is not None
    assert again.train.keys.tolist() == whole.keys.tolist()
    assert [again.train.where(n) for n in range(23)] == [whole.where(n) for n in range(23)]
    assert len(again.test) == 0
    one, two = (again.train.columns[name] for name in ("stored", "stored too"))
    assert isinstance(one, StoredNumbers)
    assert isinstance(two, StoredNumbers)
    assert one.selection is two.selection, "positions are held once"
    apart = undivided(replace(found, drawn=False), "d")
    assert fingerprint(apart.train) == fingerprint(found.train)
