"""THE inner loop: a data-parallel worker and a federated client both train with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from heliotrope.config.training import LossConfig
from heliotrope.data import Batch
from heliotrope.models.layers.seeded import reseed
from heliotrope.system.stopwatch import Stopwatch
from heliotrope.tasks import Task
from heliotrope.training.buffers import unchanged_buffers
from heliotrope.training.joint import (
    FirstPass,
    Gather,
    alone,
    check_alike,
    generators_of,
    gradient_by_outputs,
)

__all__ = [
    "Recipe",
    "Stepper",
    "TrainTotals",
    "TrainingBatch",
    "penalty_of",
    "train_batches",
    "weight_penalty",
]


@dataclass(frozen=True)
class TrainingBatch:
    """The examples of one step, or of one worker's part of it.

    Parameters
    ----------
    fields
        Named tensors, [B, ...] each.
    weight
        Sum of the examples' weights, as their task has them.
    divisor
        Turns the sum of losses into the quantity whose gradient is taken: the weight for a plain
        mean; the weight of the global batch / world size for a data-parallel worker, since DDP
        averages gradients over ranks, which need not hold equally much.
    seed
        Fixes the dropout masks of the step.
    first
        The place of these examples in the batch they are a part of, whose masks are drawn as one.
    others, share
        With mixup the inputs are mixed already: `share` of each loss is that of the targets in
        `fields`, the rest that of the targets in `others`.
    """

    fields: Batch
    weight: int
    divisor: float
    seed: int
    first: int = 0
    others: Batch | None = None
    share: float = 1.0

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def parts(self, count: int) -> Iterator[TrainingBatch]:
        """Yield `count` contiguous parts, whose gradients add up to that of the whole.

        They differ by at most one example, the last is the largest, and of a batch with fewer
        examples than `count` some are empty: every rank does the same number of passes. Each has
        the weight and the divisor of the whole.
        """
        if count == 1:
            yield self
            return
        total = len(self)
        for index in range(count):
            rows = slice(total * index // count, total * (index + 1) // count)
            others = None if self.others is None else _rows(self.others, rows)
            yield replace(
                self, fields=_rows(self.fields, rows), first=self.first + rows.start, others=others
            )


def _rows(fields: Batch, rows: slice) -> Batch:
    return {name: value[rows] for name, value in fields.items()}


@dataclass(frozen=True)
class Recipe:
    """How the gradient of a step is made and applied; the defaults are the plain step.

    `accumulation_steps` is the number of micro-batches into which each batch is cut; their
    gradients are added up before the one update, and exchanged between ranks once.
    With `clip_norm`, gradients are scaled down to at most that norm, over all parameters.
    `around_forward` gives the context of each forward pass, such as autocast; losses are taken
    in full precision outside of it. `scaler` keeps small gradients of float16 from vanishing.
    `change_gradients` is called when the gradients of a step are whole, before they are clipped.
    `after_update` is called after each update, `note_loss` with the sum of each step's losses, a
    float64 scalar that stays on its device. `watch` notes where the time goes.
    `gather` brings the outputs of all ranks together, for a loss that depends on all of them.
    `backward` takes the place of a pass forward and back: it adds to the parameters' gradients, and
    returns the sum of the losses, [].
    """

    accumulation_steps: int = 1
    clip_norm: float | None = None
    around_forward: Callable[[TrainingBatch], AbstractContextManager[object]] = nullcontext
    scaler: GradScaler | None = None
    change_gradients: Callable[[], None] | None = None
    after_update: Callable[[], None] | None = None
    note_loss: Callable[[Tensor], None] | None = None
    watch: Stopwatch | None = None
    gather: Gather = alone
    backward: Callable[[TrainingBatch], Tensor] | None = None


@dataclass
class TrainTotals:
    """Sums over the steps done: losses (before each update), weights, steps."""

    loss_sum: float = 0.0
    weight: int = 0
    steps: int = 0

    @property
    def loss(self) -> float:
        """Mean training loss per unit of weight."""
        return self.loss_sum / self.weight if self.weight else float("nan")


def penalty_of(model: nn.Module, loss: LossConfig) -> Callable[[], Tensor] | None:
    """Return what computes the sum of `loss`'s penalties of the weights; None if all are off."""
    if not (loss.l1 or loss.l2):
        return None
    weights = list(model.parameters())
    return lambda: weight_penalty(weights, loss)


def weight_penalty(weights: Iterable[Tensor], loss: LossConfig) -> Tensor:
    """Return `loss`'s penalties of `weights`, l1 ||w||_1 + (l2/2) ||w||^2, as one number, []."""
    each = [w.abs().sum() * loss.l1 + w.square().sum() * (loss.l2 / 2) for w in weights]
    return torch.stack(each).sum()


class Stepper:
    """Takes one optimizer step a batch, and sums up losses and weights.

    The model is put into training. Losses are summed where they are, so that no step waits for a
    GPU: the totals hold once `finish` is called.

    Parameters
    ----------
    model, optimizer, task
        What is trained, by what, and whose losses are minimised.
    penalty
        Added to every step's loss but not to the reported one.
    recipe
        How a step is taken.
    totals
        Those of earlier batches, to go on from: the sums are the same, bit for bit, as those of one
        stepper for all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        task: Task,
        penalty: Callable[[], Tensor] | None = None,
        recipe: Recipe = Recipe(),
        totals: TrainTotals | None = None,
    ) -> None:
        model.train()
        self._model, self._optimizer, self._task = model, optimizer, task
        self._penalty, self._recipe = penalty, recipe
        self._totals = TrainTotals() if totals is None else totals
        device = next(model.parameters()).device
        self._loss_sum = torch.tensor(self._totals.loss_sum, dtype=torch.float64, device=device)
        self._watch = recipe.watch or Stopwatch()
        self._watch.start()

    def step(self, batch: TrainingBatch) -> None:
        """Take one step. The time since the last is that of getting `batch`."""
        recipe, watch, model = self._recipe, self._watch, self._model
        watch.lap("data")
        self._optimizer.zero_grad(set_to_none=True)
        before = None if recipe.note_loss is None else self._loss_sum.clone()
        parts = list(batch.parts(recipe.accumulation_steps))
        firsts: list[FirstPass] = []
        if self._task.joint and len(parts) > 1:
            firsts = self._first_passes(batch, parts)
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            penalty = self._penalty if last else None
            given = firsts[number - 1] if firsts else None
            with nullcontext() if last else _not_exchanged(model):
                self._loss_sum += _backward(model, self._task, part, penalty, recipe, given)
        check_alike(firsts)
        watch.lap("forward_backward")
        _update(model, self._optimizer, recipe)
        if recipe.note_loss is not None and before is not None:
            recipe.note_loss(self._loss_sum - before)
        watch.lap("optimizer")
        watch.steps += 1
        self._totals.weight += batch.weight
        self._totals.steps += 1

    def _first_passes(self, batch: TrainingBatch, parts: list[TrainingBatch]) -> list[FirstPass]:
        """Return the outputs of each part and the gradients by them.

        What those passes change besides, such as BatchNorm's statistics, is put back.
        """
        model, task, recipe = self._model, self._task, self._recipe
        before = [buffer.clone() for buffer in model.buffers()]
        with torch.no_grad():
            outputs, generators = [], []
            for part in parts:
                generators.append(generators_of(self._loss_sum.device))
                outputs.append(_outputs(model, task, part, recipe))
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)
        loss_sum, gradient = gradient_by_outputs(
            task, torch.cat(outputs), batch.fields, recipe.gather
        )
        self._loss_sum += loss_sum
        gradients = torch.split(gradient, [len(part) for part in parts])
        return [FirstPass(*each) for each in zip(outputs, gradients, generators, strict=True)]

    def finish(self) -> TrainTotals:
        """Return the totals of all steps; on a GPU, wait for them."""
        self._totals.loss_sum = float(self._loss_sum)
        self._watch.lap("data")  # the end of the batches, and what was queued on a GPU
        return self._totals


def train_batches(
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    batches: Iterable[TrainingBatch],
    penalty: Callable[[], Tensor] | None = None,
    recipe: Recipe = Recipe(),
) -> TrainTotals:
    """Take one optimizer step per batch and return the totals; see `Stepper` for what is given."""
    stepper = Stepper(model, optimizer, task, penalty, recipe)
    for batch in batches:
        stepper.step(batch)
    return stepper.finish()


def _backward(
    model: nn.Module,
    task: Task,
    batch: TrainingBatch,
    penalty: Callable[[], Tensor] | None,
    recipe: Recipe,
    first: FirstPass | None = None,
) -> Tensor:
    """Add the gradient of one pass to the parameters'; return the sum of its losses, [].

    `first` is a first pass, from which the gradient by the outputs and the losses are known.
    """
    if recipe.backward is not None:
        return recipe.backward(batch)
    if first is not None:
        first.begin_second()
    outputs = _outputs(model, task, batch, recipe)
    if first is not None:
        first.compare(outputs)
        batch_loss, total = outputs.new_zeros(()), (outputs * first.gradient).sum()
    elif task.joint:
        batch_loss, by_outputs = gradient_by_outputs(task, outputs, batch.fields, recipe.gather)
        total = (outputs * by_outputs).sum()
    else:
        batch_loss = total = _loss_sum(task, outputs, batch)
    objective = total / batch.divisor
    if penalty is not None:
        objective = objective + penalty()
    if recipe.scaler is not None:
        objective = recipe.scaler.scale(objective)
    objective.backward()  # type: ignore[no-untyped-call]
    _give_each_its_own(model)
    return batch_loss.detach()


def _give_each_its_own(model: nn.Module) -> None:
    """Let no weight's gradient lie in the memory of another's.

    That of weights which are reshaped and added, as two biases, may be one and the same (torch
    2.13): clipping would scale it twice, and the next gradient be added to it twice.
    """
    found = [(weight, weight.grad) for weight in model.parameters()]
    dense = [(w, g) for w, g in found if type(g) is Tensor and g.layout is torch.strided]
    end = 0
    for weight, gradient in sorted(dense, key=lambda pair: pair[1].data_ptr()):
        start = gradient.data_ptr()
        if start < end:
            weight.grad = gradient.clone()
        end = max(end, start + gradient.nbytes)


def _outputs(model: nn.Module, task: Task, batch: TrainingBatch, recipe: Recipe) -> Tensor:
    """Return the model's outputs for one pass, in full precision.

    Without examples, as where a batch has fewer than there are ranks, no buffer changes: torch
    counts a batch of BatchNorm's, and a running mean of a user's module becomes NaN for ever.
    """
    reseed(model, batch.seed, batch.first)
    kept: AbstractContextManager[None]
    kept = nullcontext() if len(batch) else unchanged_buffers(model)
    with recipe.around_forward(batch), kept:
        outputs = task.call(model, batch.fields)
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def _update(model: nn.Module, optimizer: Optimizer, recipe: Recipe) -> None:
    scaler = recipe.scaler
    if scaler is not None and (recipe.change_gradients or recipe.clip_norm is not None):
        scaler.unscale_(optimizer)
    if recipe.change_gradients is not None:
        recipe.change_gradients()
    if recipe.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    if scaler is None:
        optimizer.step()
    else:  # leaves the step out if a gradient is not finite, and lowers the scale
        scaler.step(optimizer)
        scaler.update()
    if recipe.after_update is not None:
        recipe.after_update()


def _loss_sum(task: Task, outputs: Tensor, batch: TrainingBatch) -> Tensor:
    total = task.losses(outputs, batch.fields).sum()
    if batch.others is None:
        return total
    others = task.losses(outputs, batch.others).sum()
    return total * batch.share + others * (1.0 - batch.share)


def _not_exchanged(model: nn.Module) -> AbstractContextManager[None]:
    """Return the context in which a wrapped model keeps its gradients to its own rank."""
    no_sync = getattr(model, "no_sync", None)  # of DistributedDataParallel, also when compiled
    if no_sync is not None:
        context: AbstractContextManager[None] = no_sync()
        return context
    exchange = getattr(model, "set_requires_gradient_sync", None)  # of a sharded model
    return nullcontext() if exchange is None else _without(exchange)


@contextmanager
def _without(exchange: Callable[[bool], None]) -> Iterator[None]:
    exchange(False)
    try:
        yield
    finally:
        exchange(True)
