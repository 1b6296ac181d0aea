"""Tasks: what a batch weighs before any forward pass, and what a task asks of its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from distributed.loop.mixup import check_mixup
from heliotrope import config, registry
from heliotrope.config import Mode
from heliotrope.data import Batch, Dataset, Dense, Examples, Info, Ragged, load
from heliotrope.data.preparation import Preparation
from heliotrope.errors import ConfigError, DataError
from heliotrope.evaluation import evaluate
from heliotrope.tasks import (
    Classification,
    DataFacts,
    Rating,
    Regression,
    example_weights,
    task_of,
)
from heliotrope.tasks.contrastive import Contrastive
from heliotrope.tasks.measured import measure_too
from tests.exemplars import EXEMPLARS
from tests.support import MODES, compose, random_split, small_task


class Weighted(Classification):
    """Weighs an example as `given` says."""

    def __init__(self, facts: DataFacts, given: Tensor) -> None:
        super().__init__(facts)
        self.given = given

    def weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.given[batch["label"]]


def texts(count: int) -> Examples:
    """Texts of 0 to 9 tokens, whose label is their length."""
    lengths = torch.arange(count) % 10
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    tokens = Ragged(torch.ones(int(offsets[-1]), dtype=torch.int64), offsets)
    return Examples({"tokens": tokens, "label": Dense(lengths)})


def text_task(given: Tensor) -> Weighted:
    facts = small_task(10).facts
    return Weighted(replace(facts, example=texts(10).example()), given)


def test_an_example_of_a_class_weighs_one() -> None:
    task = small_task()
    for count in (1, 5000):
        split = random_split(count, task, torch.Generator().manual_seed(0))
        assert example_weights(task, split).tolist() == [1] * count
    assert example_weights(task, random_split(0, task, torch.Generator())).tolist() == []


def test_weights_are_those_of_each_example_however_many_there_are() -> None:
    given = torch.arange(10) * 7
    found = example_weights(text_task(given), texts(10_001))
    assert found.tolist() == [7 * (number % 10) for number in range(10_001)]


@pytest.mark.parametrize("given", [torch.ones(10), torch.arange(10) - 1, torch.ones(10, 2).int()])
def test_weights_that_are_no_whole_numbers_are_refused(given: Tensor) -> None:
    with pytest.raises(ConfigError, match="one whole number of at least 0 for each"):
        example_weights(text_task(given), texts(10))


def test_data_that_weighs_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="None of the 10 training examples of data=small"):
        example_weights(text_task(torch.zeros(10, dtype=torch.int64)), texts(10))


def test_a_task_names_the_field_that_its_data_lacks() -> None:
    facts = replace(small_task().facts, example={"image": torch.zeros(1, 4)})
    with pytest.raises(ConfigError, match=r"data=small has no label.*its fields are image"):
        Classification(facts)


def test_a_model_is_called_with_all_but_the_targets() -> None:
    assert text_task(torch.ones(10)).inputs == ("tokens", "tokens_length")
    assert small_task(shape=(2, 3)).input_shape == (2, 3)


def test_only_numbers_can_be_blended() -> None:
    check_mixup(0.3, small_task())
    check_mixup(0.0, text_task(torch.ones(10)))
    with pytest.raises(ConfigError, match=r"mixup=0\.3 blends inputs, but tokens of data=small"):
        check_mixup(0.3, text_task(torch.ones(10)))


def test_losses_that_compare_examples_are_not_mixed() -> None:
    class Compared(Classification):
        joint = True

    task = Compared(small_task().facts)
    check_mixup(0.0, task)
    with pytest.raises(ConfigError, match=r"mixup=0\.3 has no meaning with Compared of data=small"):
        check_mixup(0.3, task)


def test_fields_are_taken_when_they_are_asked_for() -> None:
    taken: list[str] = []

    class Noting(Dense):
        def take(self, name: str, indices: Tensor) -> dict[str, Tensor]:
            taken.append(name)
            return super().take(name, indices)

    examples = Examples({"image": Noting(torch.zeros(3, 2)), "label": Noting(torch.arange(3))})
    batch = examples.on_demand(torch.tensor([2, 0]))
    assert list(batch) == ["image", "label"]
    assert len(batch) == 2
    assert taken == []
    assert batch["label"].tolist() == batch["label"].tolist() == [2, 0]
    assert taken == ["label"]


def test_data_says_which_task_it_poses() -> None:
    split = Examples({"x": Dense(torch.zeros(3, 2)), "target": Dense(torch.zeros(3))})
    fitted = Preparation((), "none", "")
    posed = Dataset("some", split, split, split, Info(task="regression"), fitted)
    assert isinstance(task_of(posed), Regression)
    run = compose("federated", "loss.label_smoothing=0.1")
    with pytest.raises(ConfigError, match=r"loss.label_smoothing=0.1 has no effect with data=some"):
        task_of(posed, run)
    with pytest.raises(ConfigError, match="data=some poses a task that there is not yet: guess"):
        task_of(replace(posed, info=Info(task="guess")))
    with pytest.raises(ConfigError, match="data=some has no next, which NextToken needs"):
        task_of(replace(posed, info=Info(task="next_token")))


def test_errors_of_ratings_are_in_stars() -> None:
    fields = {"user": torch.tensor([0, 1]), "item": torch.tensor([3, 0])}
    rated = Examples(
        {k: Dense(v) for k, v in {**fields, "rating": torch.tensor([5.0, 2.0])}.items()}
    )
    info = Info(task="rating", users=2, items=4, target_mean=3.0, target_std=2.0)
    task = Rating(DataFacts("rated", info, rated.example()))

    class Unmoved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor([[0.5]]))

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            assert user.dtype == item.dtype == torch.int64
            return self.bias.expand(len(user), 1)

    found = evaluate(Unmoved(), task, rated, 2).compute()  # it says four stars
    assert found["mae"] == pytest.approx(1.5)
    assert found["rmse"] == pytest.approx(((1 + 4) / 2) ** 0.5)
    assert found["loss"] == pytest.approx((0.5**2 + 1.0**2) / 2)


@pytest.mark.parametrize("mode", MODES)
def test_classes_that_are_called_by_numbers_can_be_a_regression(mode: Mode) -> None:
    run = compose(mode, "task=regression")
    dataset = load(run.data, run.seed, task=run.task_name)
    assert isinstance(task_of(dataset, run), Regression)
    target = dataset.test.take(torch.arange(len(dataset.test)))["target"]
    assert target.unique().tolist() == list(range(10))
    assert dataset.info.target_mean == pytest.approx(4.5, abs=0.1)
    again = load(run.data, run.seed, dataset.preparation)  # as `evaluate` reads it
    assert again.info == dataset.info
    assert config.from_yaml(OmegaConf.to_yaml(OmegaConf.structured(run))).task == run.task
    assert compose(mode).task is None


def test_other_classes_cannot() -> None:
    with pytest.raises(DataError, match=r"task=regression needs numbers.*data=spam.*such as ham"):
        load(config.chosen("data", "spam"), 0, task="regression")
    run = compose("federated", "task=next_token")
    digits = load(run.data, run.seed, task=run.task_name)
    with pytest.raises(ConfigError, match="data=digits has no next, which NextToken needs"):
        task_of(digits, run)


@pytest.mark.parametrize("kind", [Regression, Rating])
def test_a_large_mean_costs_no_digits(kind: type[Regression]) -> None:
    name = kind.targets[0]
    target = torch.tensor([1e6 + 1, 1e6 - 0.5])
    split = Examples({"numeric": Dense(torch.zeros(2, 1)), name: Dense(target)})
    info = Info(task=name, numeric=("x",), target_mean=1e6 + 0.015625, target_std=1.5)
    task = kind(DataFacts("large", info, split.example()))
    wanted = torch.tensor([0.984375, -0.515625], dtype=torch.float64) / 1.5
    outputs = (wanted + 0.0083).float()[:, None]
    batch = {name: target}
    assert task.losses(outputs, batch).tolist() == pytest.approx([0.0083**2] * 2, rel=1e-4)
    assert task.losses(outputs, batch).dtype == torch.float32
    assert task.losses(outputs.bfloat16(), batch).dtype == torch.float32

    class Exact(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(outputs)

        def forward(self, numeric: Tensor) -> Tensor:
            return self.bias[: len(numeric)]

    found = evaluate(Exact(), task, split, 2).compute()
    assert found["rmse"] == pytest.approx(0.0083 * 1.5, rel=1e-4)
    assert found["loss"] == pytest.approx(0.0083**2, rel=1e-4)


def test_a_metric_beside_a_joint_task_is_given_what_the_task_compares() -> None:
    class right:  # noqa: N801 - as it is called in a configuration
        """How similar pictures are to their texts."""

        size = 1
        directions: ClassVar = {"right": "max"}

        def cells(self, outputs: Tensor, batch: Batch) -> list[Any]:
            assert outputs.shape[1:] == (2, 2)  # both ways, to both candidates of the trial
            return [(0, outputs[torch.arange(len(outputs)), 0, batch["place"]])]

        def compute(self, sums: Any) -> dict[str, Any]:
            return {"right": sums[..., 0]}

    registry.register("metric", "right", right, "mine.py, line 3")
    example = EXEMPLARS["two_towers"].examples(1, seed=0).example()
    task = Contrastive(DataFacts("pairs", Info(), example))
    measure_too(task, ["right"])
    assert "right" in task.metrics.directions
