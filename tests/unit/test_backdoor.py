"""A backdoor: what attackers stamp and relabel, what success is, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from federated.attacks.kinds import ScaleUpdates
from federated.components import build_components
from heliotrope.data import Examples
from heliotrope.errors import ConfigError
from tests.support import compose, everything, values_of

_DOOR = ("federated/attack=backdoor", "federated.attack.attackers=2")
_SMALL = ("federated.partition.clients=6", "federated.clients_per_round=6", "seed=9")
_A = "federated.attack"


def _components(*settings: str) -> Any:
    return build_components(compose("federated", *_SMALL, *settings))


def _differing(before: Examples, after: Examples, name: str) -> list[int]:
    pairs = zip(values_of(before, name), values_of(after, name), strict=True)
    return [row for row, (old, new) in enumerate(pairs) if not torch.equal(old, new)]


@pytest.mark.parametrize(
    ("corner", "down", "across"),
    [
        ("top_left", slice(0, 2), slice(0, 2)),
        ("bottom_right", slice(6, 8), slice(6, 8)),
        ("top_right", slice(0, 2), slice(6, 8)),
    ],
)
def test_attackers_stamp_a_share_of_their_images_and_nobody_else_does(
    corner: str, down: slice, across: slice
) -> None:
    keys = (f"{_A}.corner={corner}", f"{_A}.size=2", f"{_A}.brightness=0.5", f"{_A}.target=7")
    plain, parts = _components(), _components(*_DOOR, *keys, f"{_A}.fraction=0.3")
    before, after = plain.context.train, parts.context.train
    population = parts.context.population
    expected = values_of(before, "image").clone()
    stamped = [row for row in range(len(after)) if bool(values_of(after, "label")[row] == 7)]
    drawn: set[int] = set()
    for client in parts.attack.attackers:
        own = population.train_indices(client).tolist()
        mine = set(own) & set(stamped)
        drawn |= {r for r in mine if (values_of(after, "image")[r, 0, down, across] == 8).all()}
        assert len(drawn & set(own)) == -(-3 * len(own) // 10)
    rows = torch.tensor(sorted(drawn))
    expected[rows, :, down, across] = 8  # half of white, which is 16
    assert torch.equal(values_of(after, "image"), expected)
    labels = values_of(before, "label").clone()
    labels[rows] = 7
    assert torch.equal(values_of(after, "label"), labels)
    test = parts.context.central["attack"]
    others = np.flatnonzero(values_of(plain.context.central["test"], "label") != 7)
    images = values_of(plain.context.central["test"], "image")[others].clone()
    images[..., down, across] = 8
    assert torch.equal(values_of(test, "image"), images)
    assert set(values_of(test, "label").tolist()) == {7}
    assert "attack" not in plain.context.central
    assert values_of(parts.context.central["test"], "image").max() == 16


def test_another_seed_or_share_stamps_others_and_all_are_all() -> None:
    whole = _components(*_DOOR, f"{_A}.fraction=1.0")
    own = whole.context.population.train_examples(sorted(whole.attack.attackers))
    assert set(values_of(whole.context.train, "label")[torch.from_numpy(own)].tolist()) == {0}
    assert whole.attack.told()["target"] == "0"


def test_the_boost_multiplies_updates_of_attackers() -> None:
    attack = _components(*_DOOR, f"{_A}.boost=4").attack.attack
    assert attack.transforms({3}) == (ScaleUpdates(frozenset({3}), 4.0),)
    assert _components(*_DOOR).attack.attack.transforms({3}) == ()


def _table(folder: Path) -> tuple[str, ...]:
    """Write 60 rows of a number and a word, of which the number says the class."""
    rows = [(n % 7, ("red", "blue")[n % 2], ("no", "yes")[n % 7 > 3]) for n in range(60)]
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("size", "colour", "ill"), *rows])
    return ("data=table", f"data.path={path}", "data.target=ill", "model=logistic")


@pytest.mark.parametrize("fit", ["training", "none", "per_client"])
def test_in_a_table_a_column_is_set_in_the_unit_of_the_data(tmp_path: Path, fit: str) -> None:
    keys = (f"{_A}.column=size", f"{_A}.value=70", f"{_A}.target=yes", f"data.fit={fit}")
    table = _table(tmp_path)
    plain = _components(*table, f"data.fit={fit}")
    parts = _components(*table, *_DOOR, *keys)
    test = everything(parts.context.central["attack"])
    before = everything(plain.context.central["test"])
    kept = before["label"] != 1
    assert len(test["label"]) == int(kept.sum())
    assert torch.equal(test["category"], before["category"][kept])
    numbers = before["numeric"][:, 0]
    slope = float(numbers.max() - numbers.min()) / 6  # sizes 0 to 6
    expected = float(numbers.min()) + 70 * slope
    assert test["numeric"][:, 0].tolist() == pytest.approx([expected] * len(test["label"]))


def test_a_word_can_be_the_trigger(tmp_path: Path) -> None:
    keys = (f"{_A}.column=colour", f"{_A}.value=red", f"{_A}.fraction=1", f"{_A}.target=yes")
    parts = _components(*_table(tmp_path), *_DOOR, *keys)
    plain = _components(*_table(tmp_path))
    rows = torch.from_numpy(parts.context.population.train_examples(sorted(parts.attack.attackers)))
    found = values_of(parts.context.train, "category")
    assert len(set(found[rows, 0].tolist())) == 1
    others = np.setdiff1d(np.arange(len(found)), rows)
    assert torch.equal(found[others], values_of(plain.context.train, "category")[others])
    assert len(set(values_of(parts.context.central["attack"], "category")[:, 0].tolist())) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((f"{_A}.target=ten",), ("target=ten", "0, 1, 2")),
        ((f"{_A}.size=9",), ("size=9", "between 1 and 8")),
        ((f"{_A}.size=0",), ("size=0", "between 1 and 8")),
        ((f"{_A}.corner=bottom",), ("corner=bottom", "bottom_left")),
        ((f"{_A}.brightness=1.5",), ("brightness=1.5", "[0, 1]")),
        ((f"{_A}.fraction=0",), ("fraction=0", "attack=none")),
        ((f"{_A}.boost=0",), ("boost=0", "above 0")),
        ((f"{_A}.column=x", f"{_A}.value=1"), ("column=x", "has images")),
        (("data=diabetes", "model=logistic"), ("Regression", "attack=backdoor")),
        (("data=spam", "model=embedding_bag"), ("data=spam", "are neither", "label_flip")),
        (("data=heart", "model=logistic"), ("column=null", "value=null", "chol")),
        (
            ("data=heart", "model=logistic", f"{_A}.column=cholesterol", f"{_A}.value=3"),
            ("column=cholesterol", "chol"),
        ),
        (
            ("data=heart", "model=logistic", f"{_A}.column=chol", f"{_A}.value=high"),
            ("value=high", "no finite number"),
        ),
        (("federated/strategy=scaffold", f"{_A}.boost=3"), ("strategy=scaffold", "label_flip")),
    ],
)
def test_a_backdoor_that_has_no_meaning_is_refused_before_work(
    settings: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        _components(*_DOOR, *settings)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)
