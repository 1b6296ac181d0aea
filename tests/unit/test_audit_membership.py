"""Members of an overfitted model are found, those of a model that never saw them are not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from federated.audit.shadows import _trained, membership_of
from federated.engine.context import divide
from federated.population import Population
from heliotrope.audit.findings import Findings
from heliotrope.audit.losses import losses_of
from heliotrope.audit.membership import (
    Membership,
    attack_of,
    confidences,
    halves,
    likelihood_ratios,
)
from heliotrope.audit.page import render
from heliotrope.config import Run
from heliotrope.data import Dataset, Examples, Info
from heliotrope.data.preparation import Preparation
from heliotrope.tasks import Classification
from tests.support import classification, compose, everything, fresh_seed, labelled

_MEMBERS, _OTHERS, _EPOCHS = 150, 150, 60
_TASK = classification("noise", (12,), ("a", "b", "c"))


def run_of(*more: str) -> Run:
    return compose(
        "distributed",
        "model=mlp",
        "model.hidden=[48]",
        "distributed.batch_size=16",
        "optimizer.lr=0.1",
        "optimizer.momentum=0.9",
        *more,
    )


def split(count: int, generator: torch.Generator) -> Examples:
    images = torch.randn(count, 12, generator=generator)
    return labelled(images, torch.randint(0, 3, (count,), generator=generator))


def dataset(seed: int) -> Dataset:
    """Return inputs whose labels nothing tells: what is learned of them is learned by heart."""
    generator = torch.Generator().manual_seed(seed)
    train, test = split(_MEMBERS, generator), split(_OTHERS, generator)
    info = Info(class_names=("a", "b", "c"))
    none = Preparation((), "none", "classification")
    return Dataset("noise", train, train.subset(slice(0, 0)), test, info, none)


def trained(run: Run, examples: Examples) -> nn.Module:
    everyone = np.ones((1, len(examples)), dtype=np.bool_)
    (model,) = _trained(run, "distributed", examples, _TASK, everyone, _EPOCHS, lambda *_: None)
    return model


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_an_overfitted_model_is_told_from_one_trained_on_other_data(seed: int) -> None:
    run, data = run_of(f"seed={seed}"), dataset(seed)
    looks: list[tuple[int, int]] = []

    def found(model: nn.Module) -> dict[str, float]:
        result = membership_of(
            run, "distributed", data, model, _TASK, 16, _EPOCHS, lambda *done: looks.append(done)
        )
        assert (result.shadows, result.epochs) == (16, _EPOCHS)
        return {attack.name: attack.low for attack in result.attacks}

    overfitted = found(trained(run, data.train))
    assert looks[-1] == (16, 16)
    assert overfitted["loss"] > 0.8
    assert overfitted["LiRA"] > 0.8
    stranger = trained(run, split(_MEMBERS, torch.Generator().manual_seed(100 + seed)))
    assert max(found(stranger).values()) < 0.6


def test_likelihood_ratios_find_more_at_few_false_positives_than_the_loss() -> None:
    run, data = run_of(), dataset(5)
    result = membership_of(
        run, "distributed", data, trained(run, data.train), _TASK, 16, _EPOCHS, lambda *_: None
    )
    loss, lira = result.attacks
    assert lira.rates[1].found > loss.rates[1].found


def test_the_area_is_that_of_all_pairs() -> None:
    generator = np.random.default_rng(1)
    inside, outside = generator.integers(0, 9, 40) + 0.0, generator.integers(0, 7, 30) + 0.0
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(inside, outside)]
    attack = attack_of("x", inside, outside)
    assert attack.auc == pytest.approx(np.mean(pairs))
    assert attack.low < attack.auc < attack.high
    again = [
        attack_of("x", generator.choice(inside, 40), generator.choice(outside, 30)).auc
        for _ in range(400)
    ]
    assert attack.high - attack.low == pytest.approx(2 * 1.96 * np.std(again), rel=0.25)


@pytest.mark.parametrize(("members", "others"), [(1, 1), (2, 2), (3, 3), (1, 50), (50, 2), (9, 9)])
def test_luck_of_few_examples_is_no_finding(members: int, others: int) -> None:
    generator = np.random.default_rng(fresh_seed())
    tries = [
        attack_of("x", generator.random(members), generator.random(others)).low > 0.5
        for _ in range(1000)
    ]
    assert np.mean(tries) < 0.05  # 0.025 are promised: 16 times the deviation more


def test_an_interval_of_scores_that_do_not_overlap_is_that_of_the_areas_not_refuted() -> None:
    apart = attack_of("x", np.full(1, 1.0), np.zeros(1))
    assert (apart.auc, apart.high) == (1.0, 1.0)
    assert apart.low < 0.25  # of one pair; half of all guesses are right by luck
    many = attack_of("x", np.full(1000, 1.0), np.zeros(1000))
    assert 0.99 < many.low < 1.0


def test_the_page_says_in_words_what_the_best_attack_means() -> None:
    def page(members: float) -> str:
        generator = np.random.default_rng(fresh_seed())
        inside, outside = generator.normal(members, 1, 500), generator.normal(0, 1, 500)
        attack, luck = attack_of("loss", inside, outside), attack_of("LiRA", outside, outside)
        found = Findings(
            "mine", "federated", None, None, membership=Membership((luck, attack), 2, 1)
        )
        return " ".join(render(found).split())

    told = page(2.0)
    assert "the best attack (loss) takes the right one in 9" in told
    assert "where guessing does in 50 %" in told
    assert "no proof" not in told
    assert "That is no proof that nobody can" in page(-2.0)


def test_rates_keep_to_their_false_positives_with_ties() -> None:
    inside, outside = np.repeat([0.0, 1.0], 500), np.repeat([0.0, 1.0], [995, 5])
    few, more = attack_of("x", inside, outside).rates
    assert (few.allowed, more.allowed) == (1, 10)
    assert few.found == 0  # above the second highest there is none
    assert more.found == 0.5
    assert more.low < 0.5 < more.high


def test_odd_scores() -> None:
    one = attack_of("x", np.array([1.0]), np.array([1.0]))
    assert (one.auc, one.rates[0].found) == (0.5, 0)
    same = attack_of("x", np.zeros(50), np.zeros(50))
    assert same.auc == 0.5
    assert same.low < 0.5 < same.high
    best = attack_of("x", np.full(50, np.inf), np.zeros(50))
    assert (best.auc, best.rates[0].found, best.rates[0].high) == (1.0, 1.0, 1.0)
    assert attack_of("x", np.full(50, np.nan), np.zeros(50)).auc == 0
    with pytest.raises(ValueError, match="cannot be compared"):
        attack_of("x", np.zeros(3), np.zeros(0))


def test_confidences_and_ratios() -> None:
    probabilities = np.array([0.5, 0.9, 1.0, 1e-30])
    found = confidences(-np.log(probabilities), probable=True)
    assert found[:2] == pytest.approx([0.0, np.log(9)])
    assert np.isfinite(found).all()
    assert np.array_equal(confidences(np.array([1.0, 3.0]), probable=False), [-1.0, -3.0])
    chosen = halves(16, 40, np.random.default_rng(0))
    assert (chosen.sum(axis=0) == 8).all()
    assert len(np.unique(chosen, axis=1).T) > 30
    generator = np.random.default_rng(2)
    shadows = generator.standard_normal((16, 40)) + 3 * chosen
    ratios = likelihood_ratios(np.repeat([3.0, 0.0], 20), shadows, chosen)
    assert (ratios[:20] > 0).mean() > 0.9
    assert (ratios[20:] < 0).mean() > 0.9


def test_one_class_and_no_shadows() -> None:
    run = run_of()
    images = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    alike = labelled(images, torch.zeros(20, dtype=torch.int64))
    data = dataset(0)
    data = Dataset("noise", alike, alike.subset(slice(0, 5)), alike, data.info, data.preparation)
    model = trained(run, alike)
    result = membership_of(run, "distributed", data, model, _TASK, 4, 3.2, lambda *_: None)
    assert [attack.members for attack in result.attacks] == [20, 20]
    assert [attack.others for attack in result.attacks] == [25, 25]
    assert result.epochs == 3
    assert all(np.isfinite(attack.auc) for attack in result.attacks)
    alone = membership_of(run, "distributed", data, model, _TASK, 0, 3.2, lambda *_: None)
    assert [attack.name for attack in alone.attacks] == ["loss"]
    assert len(everything(alike)["label"].unique()) == 1


def test_what_clients_hold_out_is_no_member() -> None:
    data = dataset(0)
    run = compose(
        "federated",
        "model=mlp",
        "federated.partition.clients=5",
        "federated.clients_per_round=5",
        "federated.holdout_fraction=0.4",
    )
    held = Population(divide(run, data), 0.4, run.seed).holdout_examples(range(5))
    kept = np.setdiff1d(np.arange(_MEMBERS), held)
    model = trained(run_of(), data.train.subset(torch.from_numpy(kept)))
    found = membership_of(run, "federated", data, model, _TASK, 0, 1.2, lambda *_: None)
    (loss,) = found.attacks
    assert (loss.members, loss.others) == (_MEMBERS - len(held), _OTHERS + len(held))
    assert 50 < len(held) < 70
    assert loss.low > 0.8
    assert found.epochs == 2  # 1.2 times 150 examples are 2 times those that were trained on


class _ByHeart(nn.Module):
    """Gives logits that are what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.somewhere = nn.Parameter(torch.zeros(()))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


def test_how_sure_a_model_is_of_what_it_knows_by_heart_is_told() -> None:
    margins = torch.tensor([5.0, 12.0, 16.0, 19.0, 22.0, 28.0, 32.0])
    logits = torch.zeros(len(margins), 3)
    logits[:, 1] = margins
    examples = labelled(logits, torch.ones(len(margins), dtype=torch.int64))
    losses = losses_of(_ByHeart(), _TASK, examples, torch.arange(len(margins)), 2)
    sure = confidences(losses.numpy(), probable=True)
    np.testing.assert_allclose(sure, margins.double() - np.log(2), rtol=1e-2)


def test_losses_of_a_task_that_knows_float32_alone_are_taken_so() -> None:
    class Weighted(Classification):
        def losses(self, outputs: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
            weights = torch.tensor([1.0, 2.0, 3.0])
            return functional.cross_entropy(outputs, batch["label"], weights, reduction="none")

    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    found = losses_of(
        _ByHeart(), Weighted(_TASK.facts), labelled(logits, labels), torch.arange(4), 3
    )
    want = functional.cross_entropy(logits, labels, reduction="none") * (labels + 1)
    torch.testing.assert_close(found, want.double(), check_dtype=False)
