"""A user's own dataset, read in this process: what it becomes, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from heliotrope import config, plugin_loading
from heliotrope.data import Dataset, Traits, load
from heliotrope.data.preparation import from_json
from heliotrope.errors import ConfigError, DataError, HeliotropeError
from tests.support import everything

_HEAD = """
import numpy as np
import torch
from torch.utils.data import Dataset
from heliotrope import plugin

class Items(Dataset):
    def __init__(self, items):
        self.items = items
    def __len__(self):
        return len(self.items)
    def __getitem__(self, number):
        return self.items[number]

class Noisy(Items):
    def __getitem__(self, number):
        image, label = self.items[number]
        return image + torch.rand(()), label

"""

Make = Callable[..., Dataset]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return what loads the dataset that the body of a plug-in's function returns."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    place = iter(range(9))

    def made(body: str, task: str | None = None, *, hashed: bool = False, **keys: Any) -> Dataset:
        file = tmp_path / f"mine{next(place)}.py"
        name = f"own_{tmp_path.name}_{file.stem}".replace("-", "_")
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        file.write_text(f"{_HEAD}@plugin.data\ndef {name}(*, size: int = 20):\n{lines}\n")
        plugin_loading.load([str(file)])
        return load(config.chosen("data", name, **keys), 0, task=task, hashed=hashed)

    return made


def test_too_few_items_for_a_test_split_are_refused_with_how_many_it_needs(make: Make) -> None:
    items = "return Items([(torch.ones(3), 0.5)] * size)"
    with pytest.raises(DataError, match=r"has 1 item\(s\), .* Return three or more, or a tuple of"):
        make(items, size=1)
    found = make(items, size=3)
    assert (len(found.train), len(found.test)) == (2, 1)
    found = make(f"{items}, Items([(torch.ones(3), 0.5)])", size=1)
    assert (len(found.train), len(found.test)) == (1, 1)


def test_integer_targets_are_classes_and_floating_ones_a_regression(make: Make) -> None:
    found = make("return Items([(torch.full((3,), i * 1.0), i % 4) for i in range(size)])")
    assert found.info.task == "classification"
    assert found.info.class_names == ("0", "1", "2", "3")
    assert found.info.numeric == ("x0", "x1", "x2")
    assert (len(found.train), len(found.test)) == (16, 4)
    batch = everything(found.train)
    assert torch.equal(batch["numeric"][:, 0] % 4, batch["label"].float())  # as they were given
    again = load(config.chosen("data", found.name), 0, from_json(found.preparation.to_json()))
    assert torch.equal(everything(again.train)["numeric"], batch["numeric"])

    found = make("return Items([(np.float64(i), i / 4) for i in range(size)])", size=10)
    assert found.info.task == "regression"
    batch = everything(found.train)
    assert torch.equal(batch["numeric"][:, 0] / 4, batch["target"])


def test_classes_are_told_apart_and_the_same_in_both_datasets(make: Make) -> None:
    """ImageNet has two cranes; folders of other classes are numbered otherwise."""
    both = """
train, test = (Items([(i * 1.0, i % 3) for i in range(size)]) for _ in range(2))
train.classes, test.classes = ["crane", "cat", "crane"], {classes}
return train, test"""
    found = make(both.format(classes=["crane", "cat", "crane"]))
    assert found.info.class_names == ("crane (0)", "cat", "crane (2)")
    with pytest.raises(DataError, match=r"test dataset: its class 0 is cat, but crane in the trai"):
        make(both.format(classes=["cat", "crane", "crane"]))


def test_a_pair_is_training_and_test_and_bytes_are_images(make: Make) -> None:
    found = make(
        "drawn = torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8)\n"
        "one = Items([(image, i % 2) for i, image in enumerate(drawn)])\n"
        "one.classes = ['cat', 'dog']\n"
        "return one, Items([(np.zeros((4, 4), np.uint8), 1)] * 2)"
    )
    assert found.info.class_names == ("cat", "dog")
    assert found.info.image_shape == (1, 4, 4)
    assert (len(found.train), len(found.test)) == (9, 2)
    images = everything(found.train)["image"]
    assert float(images.mean()) == pytest.approx(0, abs=1e-5)  # scaled, as data.fit says
    drawn = load(config.chosen("data", found.name), 7)
    assert torch.equal(everything(drawn.train)["image"], images)  # the same in every run


def test_a_task_may_be_chosen_and_targets_be_arrays(make: Make) -> None:
    body = "return Items([({'a': torch.ones(2), 'b': i}, i % 3) for i in range(size)])"
    found = make(body, task="regression")
    batch = everything(found.test)
    assert set(batch) == {"a", "b", "target"}
    assert batch["b"].dtype == torch.int64
    assert torch.equal(batch["target"], (batch["b"] % 3).float())
    signed = make("return Items([(np.float64(i), i % 5 - 2) for i in range(size)])", "regression")
    assert set(everything(signed.train)["target"].tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    counts = "return Items([({'user': i}, 1_500_000 * (i % 3)) for i in range(size)])"
    assert make(counts, "regression").info.class_names == ()
    assert everything(make(counts, "rating").train)["rating"].max() == 3e6
    body = "return Items([(torch.ones(2), torch.ones(5)) for i in range(size)])"
    many = make(body, task="many")
    assert many.info.task == "many"
    assert Traits.of(many.train).targets is None  # nothing to divide by
    with pytest.raises(HeliotropeError, match=r"arrays \[5\], of which no task is known"):
        make(body)


_AUGMENTED = "return Noisy([(torch.full((1, 4, 4), float(i)), i % 2) for i in range(size)])"


def test_what_differs_between_two_reads_is_read_for_each_batch_or_refused(make: Make) -> None:
    with pytest.raises(
        HeliotropeError, match=r"item 0: its image differs between two reads.*materialise=false"
    ):
        make(_AUGMENTED)
    found = make(_AUGMENTED, materialise=False)
    once, twice = everything(found.train), everything(found.train)
    assert torch.equal(once["label"], twice["label"])
    assert not torch.equal(once["image"], twice["image"])
    assert torch.equal(once["image"].floor()[:, 0, 0, 0] % 2, once["label"].float())
    assert found.train.example()["image"].shape == (1, 1, 4, 4)
    stack = found.train.take(torch.tensor([[0, 3], [2, 1]]))
    assert stack["image"].shape == (2, 2, 1, 4, 4)
    read_elsewhere = pickle.loads(pickle.dumps(found.train))  # noqa: S301 - our own
    assert torch.equal(everything(read_elsewhere)["label"], once["label"])


def test_runs_on_items_that_are_read_later_are_told_apart_by_what_these_hold(make: Make) -> None:
    def hashed(last: float, noisy: str = "Items") -> str | None:
        changed = f"[(torch.full((2,), i * 1.0 if i < 99 else {last}), i % 2) for i in range(100)]"
        # The test split is another, so that the last item is one of training.
        body = f"train = {changed}\nreturn {noisy}(train), {noisy}(train[:4])"
        return make(body, materialise=False, hashed=True).content

    assert hashed(1.0) == hashed(1.0)
    assert hashed(1.0) != hashed(2.0)
    assert hashed(1.0, "Noisy") == hashed(2.0, "Noisy")  # each read differs: what it is not made of


@pytest.mark.parametrize("given", ["{'age': 3.0}", "{'age': 3}", "3.0", "{'numeric': 3.0}"])
def test_an_input_has_one_shape_however_it_is_read(given: str, make: Make) -> None:
    body = f"return Items([({given}, i % 2) for i in range(size)])"
    read, later = (everything(make(body, materialise=m).train) for m in (True, False))
    assert read.keys() == later.keys()
    for name, values in read.items():
        torch.testing.assert_close(later[name], values, rtol=0, atol=0)


_REFUSED = {
    "return Items([])": r"has no items",
    "return [(1, 2)]": r"is a list\. Return a map-style",
    "return iter(())": r"is a tuple_iterator|is a .*iterator",
    "return Items([torch.ones(2)] * 9)": r"item 0 is Tensor\. Return two",
    "return Items([(torch.ones(2), 1, 2)] * 9)": r"item 0 is 3 values\. Return two",
    "return Items([('a text', 1)] * 9)": r"item 0: its input is a str",
    "return Items([(torch.ones(2), 'cat')] * 9)": r"item 0: its target is a str",
    "return Items([(torch.ones(2), 1), (torch.ones(3), 1)])": (
        r"item 1: its numeric is float32 \[3\], but that of item 0 is float32 \[2\]\. Bring"
    ),
    "return Items([(torch.ones(2), 1), (torch.ones(2), 1.5)])": r"item 1: its target is float32",
    "return Items([(torch.ones(2), -1)] * 9)": r"its target is -1\. Number the classes from 0",
    "return Items([(torch.tensor([1, 2.0]), 1), (torch.tensor([1, np.nan]), 1)])": (
        r"item 1: its numeric holds a number that is missing \(NaN\), infinite"
    ),
    "return Items([({'label': torch.ones(2)}, 1)] * 9)": r"other names than label",
    "return Items([(torch.ones(2), 1)] * 3), Items([(torch.ones(3), 1)] * 3)": (
        r"numeric of the training dataset is float32 \[2\].*test dataset float32 \[3\]"
    ),
    "raise KeyError('where')": r"cannot be made: KeyError: 'where'",
    "return Items({0: (torch.ones(2), 1), 2: 0})": r"item 1: reading it raises KeyError: 1",
}


@pytest.mark.parametrize("body", _REFUSED)
def test_what_cannot_be_read_is_named_with_file_and_line(body: str, make: Make) -> None:
    with pytest.raises(HeliotropeError, match=_REFUSED[body]) as refused:
        make(body)
    assert "mine0.py, line " in str(refused.value)
    assert refused.value.exit_code == ConfigError.exit_code


def test_arrays_of_another_shape_are_none_that_a_model_was_trained_with(make: Make) -> None:
    found = make("return Items([(np.ones(2), 0)] * 9)")
    other = make("return Items([(np.ones(3), 0)] * 9)")
    with pytest.raises(HeliotropeError, match=r"the model was trained with arrays \[2\]"):
        load(config.chosen("data", other.name), 0, found.preparation)


_NAMED = """items = Items([(torch.tensor([float(n)]), n % 3) for n in range(12)])
items.classes = {names}
return items, items"""


def test_named_classes_of_other_data_go_by_name(make: Make) -> None:
    """By index, each would be taken for another, and the accuracy of that be told."""
    trained = make(_NAMED.format(names=["cat", "dog", "fish"])).preparation

    def labels(names: list[str]) -> list[int]:
        other = make(_NAMED.format(names=names)).name
        return everything(load(config.chosen("data", other), 0, trained).test)["label"].tolist()

    assert labels(["fish", "cat", "dog"]) == [2, 0, 1] * 4
    assert labels([]) == [0, 1, 2] * 4  # nobody says what they are
    with pytest.raises(
        DataError, match=r"class bird \(4 .*trained with: cat, dog, fish\. The data has cat, dog, b"
    ):
        labels(["cat", "dog", "bird"])
