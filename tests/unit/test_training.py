"""The inner loop is the loop a person would write in plain torch, bit for bit."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from heliotrope.config import OptimizerConfig, chosen
from heliotrope.config.training import LossConfig
from heliotrope.models import build
from heliotrope.system.stopwatch import Stopwatch
from heliotrope.training.loop import (
    Recipe,
    TrainingBatch,
    TrainTotals,
    penalty_of,
    train_batches,
)
from heliotrope.training.optimizers import build_optimizer
from tests.support import (
    assert_same_tensors,
    classification,
    everything,
    fresh_seed,
    global_random_state_untouched,
    random_split,
    small_task,
    training_batch,
    weights,
)

TASK = small_task(classes=4, shape=(6,))

# Each with the torch optimizer that its keys promise.
OPTIMIZERS: list[tuple[OptimizerConfig, Callable[..., torch.optim.Optimizer]]] = [
    (chosen("optimizer", "sgd", lr=0.3), lambda p: torch.optim.SGD(p, lr=0.3)),
    (
        chosen("optimizer", "sgd", lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    (
        chosen("optimizer", "sgd", lr=0.1, momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    ),
    (
        chosen("optimizer", "adam", lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1),
    ),
    (
        chosen("optimizer", "adamw", lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
    ),
]


def model_of(seed: int, dropout: float = 0.0) -> nn.Module:
    return build(chosen("model", "mlp", hidden=[8, 7], dropout=dropout), TASK, seed)


def batches_of(seed: int, sizes: tuple[int, ...] = (5, 5, 5, 2, 1)) -> list[TrainingBatch]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [everything(random_split(size, TASK, generator)) for size in sizes]
    return [
        training_batch(batch["image"], batch["label"], seed=seed + step)
        for step, batch in enumerate(drawn)
    ]


def logits_of(model: nn.Module, batch: TrainingBatch) -> torch.Tensor:
    logits: torch.Tensor = model(batch.fields["image"])
    return logits


@pytest.mark.parametrize(("cfg", "plain"), OPTIMIZERS, ids=[str(cfg) for cfg, _ in OPTIMIZERS])
def test_training_is_the_plain_loop(
    cfg: OptimizerConfig, plain: Callable[..., torch.optim.Optimizer]
) -> None:
    seed = fresh_seed()
    ours, theirs = model_of(seed), model_of(seed)
    batches = batches_of(seed)

    optimizer = plain(theirs.parameters())
    loss_sum = 0.0
    for batch in batches:
        optimizer.zero_grad()
        losses = functional.cross_entropy(
            logits_of(theirs, batch), batch.fields["label"], reduction="none"
        )
        (losses.sum() / len(batch)).backward()
        optimizer.step()
        loss_sum += losses.sum().item()

    totals = train_batches(ours, build_optimizer(cfg, ours.parameters()), TASK, batches)
    assert_same_tensors(weights(ours), weights(theirs))
    assert (totals.steps, totals.weight) == (5, 18)
    assert totals.loss_sum == pytest.approx(loss_sum, rel=1e-12)
    assert totals.loss == pytest.approx(loss_sum / 18, rel=1e-12)


def test_an_optimizer_goes_on_from_one_call_to_the_next() -> None:
    seed = fresh_seed()
    at_once, in_parts = model_of(seed), model_of(seed)
    cfg = chosen("optimizer", "sgd", lr=0.1, momentum=0.9)
    batches = batches_of(seed)
    train_batches(at_once, build_optimizer(cfg, at_once.parameters()), TASK, batches)
    optimizer = build_optimizer(cfg, in_parts.parameters())
    for start in (0, 2, 4):
        train_batches(in_parts, optimizer, TASK, batches[start : start + 2])
    assert_same_tensors(weights(at_once), weights(in_parts))


def test_training_mode_is_set_and_no_batch_is_no_step() -> None:
    model = model_of(0).eval()
    before = weights(model)
    optimizer = build_optimizer(chosen("optimizer", "sgd", lr=1.0), model.parameters())
    totals = train_batches(model, optimizer, TASK, [])
    assert model.training
    assert (totals.steps, totals.weight, totals.loss_sum) == (0, 0, 0.0)
    assert math.isnan(totals.loss)
    assert_same_tensors(weights(model), before)


def test_batches_may_come_from_a_generator_one_at_a_time() -> None:
    model = model_of(1)
    optimizer = build_optimizer(chosen("optimizer", "sgd", lr=0.5), model.parameters())
    seen: list[dict[str, torch.Tensor]] = []

    def lazily() -> Iterator[TrainingBatch]:
        for batch in batches_of(1):
            seen.append(weights(model))
            yield batch

    train_batches(model, optimizer, TASK, lazily())
    assert not torch.equal(seen[0]["1.weight"], seen[1]["1.weight"]), "a batch was fetched early"


# --- divisor ------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(6, 6), (7, 5), (11, 1), (4, 5, 3), (12, 0)])
def test_averaged_over_ranks_the_gradient_is_that_of_the_global_batch(
    sizes: tuple[int, ...],
) -> None:
    """DDP averages over ranks; with divisor = global batch / ranks, uneven ranks are exact."""
    seed = fresh_seed()
    split = everything(random_split(12, TASK, torch.Generator().manual_seed(seed)))

    def gradient(images: torch.Tensor, labels: torch.Tensor, divisor: float) -> torch.Tensor:
        model = model_of(seed)
        optimizer = build_optimizer(chosen("optimizer", "sgd", lr=1.0), model.parameters())
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        train_batches(model, optimizer, TASK, [training_batch(images, labels, divisor)])
        return before - nn.utils.parameters_to_vector(model.parameters()).detach()

    whole = gradient(split["image"], split["label"], 12)
    parts = zip(split["image"].split(sizes), split["label"].split(sizes), strict=True)
    ranks = [gradient(images, labels, 12 / len(sizes)) for images, labels in parts]
    torch.testing.assert_close(torch.stack(ranks).mean(dim=0), whole, rtol=1e-4, atol=1e-6)


class _Centred(nn.BatchNorm1d):
    """Beside torch's statistics, a running mean as a user may write it."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "mean"):
            self.register_buffer("mean", torch.zeros(6))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)
        outputs: torch.Tensor = super().forward(inputs - self.mean)
        return outputs


@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_a_pass_over_no_examples_leaves_buffers_as_they_are(accumulation_steps: int) -> None:
    """As of a rank that has nothing of the last batch: the mean of nothing is NaN."""
    model = nn.Sequential(_Centred(6), nn.Linear(6, 4))
    model(torch.zeros(2, 6))
    split = everything(random_split(8, TASK, torch.Generator().manual_seed(fresh_seed())))
    some, nothing = (training_batch(split["image"][:n], split["label"][:n], 8) for n in (8, 0))
    after = []
    for batches in ([some], [nothing, some, nothing]):
        trained = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        train_batches(trained, optimizer, TASK, batches, None, Recipe(accumulation_steps))
        after.append(trained.state_dict())
    assert_same_tensors(*after)
    assert int(after[0]["0.num_batches_tracked"]) == 1 + accumulation_steps


@pytest.mark.parametrize("accumulation_steps", [2, 3, 7])
def test_micro_batches_give_the_gradient_of_their_batch(accumulation_steps: int) -> None:
    """Also with dropout, in ragged batches, and where some micro-batches are empty."""
    seed = fresh_seed()
    whole, parts = model_of(seed, dropout=0.3), model_of(seed, dropout=0.3)
    cfg = chosen("optimizer", "sgd", lr=0.1, momentum=0.9)
    totals = []
    for model, recipe in ((whole, Recipe()), (parts, Recipe(accumulation_steps))):
        optimizer = build_optimizer(cfg, model.parameters())
        penalty = penalty_of(model, LossConfig(l2=0.5))
        totals.append(train_batches(model, optimizer, TASK, batches_of(seed), penalty, recipe))
    assert (totals[1].steps, totals[1].weight) == (totals[0].steps, totals[0].weight)
    assert totals[1].loss == pytest.approx(totals[0].loss, rel=1e-5)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


class _TwoBiases(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4, bias=False)
        self.one, self.other = (nn.Parameter(torch.ones(4)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(x) + (self.one.view(1, -1) + self.other.view(1, -1))
        return outputs


@pytest.mark.parametrize("recipe", [Recipe(clip_norm=0.05), Recipe(accumulation_steps=2)])
def test_weights_of_one_gradient_are_updated_by_it_once(recipe: Recipe) -> None:
    (batch,) = batches_of(fresh_seed(), (4,))
    model = _TwoBiases()
    start = copy.deepcopy(model.state_dict())
    losses = functional.cross_entropy(logits_of(model, batch), batch.fields["label"])
    gradients = torch.autograd.grad(losses, list(model.parameters()))
    norm = nn.utils.get_total_norm(gradients)
    scale = 1.0 if recipe.clip_norm is None else recipe.clip_norm / (float(norm) + 1e-6)
    train_batches(model, torch.optim.SGD(model.parameters(), 1.0), TASK, [batch], recipe=recipe)
    for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(start[name] - weight, scale * gradient, rtol=1e-4, atol=1e-6)


# --- what is added to the gradient --------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_gradients_are_changed_once_a_step_before_they_are_clipped(
    clip_norm: float | None,
) -> None:
    seed, mu, lr = fresh_seed(), 0.7, 0.2
    ours, theirs = model_of(seed), model_of(seed)
    anchors = [p.detach().clone() for p in theirs.parameters()]
    batches = batches_of(seed)

    def pull(model: nn.Module) -> None:
        with torch.no_grad():
            for weight, anchor in zip(model.parameters(), anchors, strict=True):
                assert weight.grad is not None
                weight.grad.add_(weight - anchor, alpha=mu)

    plain = torch.optim.SGD(theirs.parameters(), lr)
    for batch in batches:
        plain.zero_grad()
        functional.cross_entropy(logits_of(theirs, batch), batch.fields["label"]).backward()
        pull(theirs)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
        plain.step()

    optimizer = build_optimizer(chosen("optimizer", "sgd", lr=lr), ours.parameters())
    recipe = Recipe(2, clip_norm, change_gradients=lambda: pull(ours))
    train_batches(ours, optimizer, TASK, batches, recipe=recipe)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_the_penalty_is_not_in_the_reported_loss() -> None:
    model = model_of(3)
    batches = batches_of(3)[:1]
    optimizer = build_optimizer(chosen("optimizer", "sgd", lr=0.1), model.parameters())
    wanted = train_batches(copy.deepcopy(model), optimizer, TASK, batches)
    totals = train_batches(model, optimizer, TASK, batches, lambda: torch.tensor(1e6))
    assert totals.loss == wanted.loss


# --- randomness ---------------------------------------------------------------------------


def test_dropout_follows_the_batch_seeds_and_nothing_else() -> None:
    seed = fresh_seed()

    def train(offset: int) -> dict[str, torch.Tensor]:
        model = model_of(seed, dropout=0.5)
        optimizer = build_optimizer(chosen("optimizer", "sgd", lr=0.1), model.parameters())
        batches = [replace(batch, seed=batch.seed + offset) for batch in batches_of(seed)]
        with global_random_state_untouched():
            train_batches(model, optimizer, TASK, batches)
        return weights(model)

    first = train(0)
    torch.manual_seed(fresh_seed())
    assert_same_tensors(train(0), first)
    assert not torch.equal(train(1)["1.weight"], first["1.weight"])


def test_parts_of_a_batch_share_its_masks() -> None:
    """Two workers' halves of a batch drop what one worker would drop in the whole."""
    seed = fresh_seed()
    split = everything(random_split(8, TASK, torch.Generator().manual_seed(seed)))

    def step(rows: slice, divisor: float) -> torch.Tensor:
        model = model_of(seed, dropout=0.4)
        optimizer = build_optimizer(chosen("optimizer", "sgd", lr=1.0), model.parameters())
        batch = training_batch(
            split["image"][rows], split["label"][rows], divisor, seed, rows.start
        )
        train_batches(model, optimizer, TASK, [batch])
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    halves = (step(slice(0, 3), 4) + step(slice(3, 8), 4)) / 2
    torch.testing.assert_close(halves, step(slice(0, 8), 8), rtol=1e-4, atol=1e-6)


def test_losses_are_each_examples_own() -> None:
    task = classification("c", (3,), ("a", "b", "c"))
    outputs = torch.randn(7, 3, generator=torch.Generator().manual_seed(fresh_seed()))
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    probabilities = outputs.double().softmax(dim=1)[torch.arange(7), targets]
    wanted = (-probabilities.log()).tolist()
    assert task.losses(outputs, {"label": targets}).tolist() == pytest.approx(
        wanted, rel=1e-5, abs=1e-6
    )


def test_smoothed_labels_are_for_training_alone() -> None:
    outputs = torch.randn(7, 3, generator=torch.Generator().manual_seed(fresh_seed()))
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    plain = classification("c", (3,), ("a", "b", "c"))
    smooth = classification("c", (3,), ("a", "b", "c"), label_smoothing=0.3)
    logs = outputs.double().log_softmax(dim=1)
    wanted = -(0.7 * logs[torch.arange(7), targets] + 0.3 * logs.mean(dim=1))
    assert smooth.losses(outputs, {"label": targets}).tolist() == pytest.approx(
        wanted.tolist(), rel=1e-5
    )
    measured = [t.metrics.measure(outputs, {"label": targets}).compute() for t in (smooth, plain)]
    assert measured[0] == measured[1]


def test_penalties_of_the_weights_are_in_the_gradient_but_not_in_the_reported_loss() -> None:
    seed, lr, l1, l2 = fresh_seed(), 0.2, 0.01, 0.3
    ours, theirs = model_of(seed), model_of(seed)
    batches = batches_of(seed)[:1]
    batch = batches[0]
    functional.cross_entropy(logits_of(theirs, batch), batch.fields["label"]).backward()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.sub_(lr * (weight.grad + l1 * weight.sign() + l2 * weight))
    optimizer = build_optimizer(chosen("optimizer", "sgd", lr=lr), ours.parameters())
    penalty = penalty_of(ours, LossConfig(l1=l1, l2=l2))
    totals = train_batches(ours, optimizer, TASK, batches, penalty)
    plain = TASK.losses(logits_of(model_of(seed), batch), batch.fields).mean()
    assert totals.loss == pytest.approx(plain.item(), rel=1e-6)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_mixup_weighs_the_losses_of_both_labels() -> None:
    seed = fresh_seed()
    ours, theirs = model_of(seed), model_of(seed)
    [batch, other, *_] = batches_of(seed)
    logits = logits_of(theirs, batch)
    first, second = (functional.cross_entropy(logits, b.fields["label"]) for b in (batch, other))
    (0.3 * first + 0.7 * second).backward()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.sub_(weight.grad)
    optimizer = build_optimizer(chosen("optimizer", "sgd", lr=1.0), ours.parameters())
    mixed = replace(batch, others=other.fields, share=0.3)
    train_batches(ours, optimizer, TASK, [mixed], recipe=Recipe(2))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_totals_of_nothing_have_no_loss() -> None:
    assert math.isnan(TrainTotals().loss)
    assert TrainTotals(loss_sum=3.0, weight=4).loss == 0.75


def test_the_time_of_the_steps_ends_when_their_losses_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = torch.Tensor.__float__

    def as_a_gpu_does(tensor: torch.Tensor) -> float:
        time.sleep(0.2)  # the kernels that are queued
        return at_once(tensor)

    monkeypatch.setattr(torch.Tensor, "__float__", as_a_gpu_does)
    model, watch = model_of(0), Stopwatch()
    optimizer = build_optimizer(chosen("optimizer", "sgd", lr=0.1), model.parameters())
    train_batches(model, optimizer, TASK, batches_of(0), recipe=Recipe(watch=watch))
    assert sum(watch.seconds.values()) >= 0.2
