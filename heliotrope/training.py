"""THE inner loop: a data-parallel worker and a federated client both train with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from heliotrope.config import AdafactorConfig, AdamConfig, OptimizerConfig, SgdConfig
from heliotrope.config_training import LossConfig
from heliotrope.models.seeded import reseed
from heliotrope.stopwatch import Stopwatch
from heliotrope.tasks import Task

__all__ = [
    "Batch",
    "Recipe",
    "TrainTotals",
    "build_optimizer",
    "penalty_of",
    "proximal_term",
    "train_batches",
    "weight_penalty",
]


@dataclass(frozen=True)
class Batch:
    """One step's examples.

    `divisor` turns the sum of losses into the quantity whose gradient is taken: the number of
    examples for a plain mean; global batch size / world size for a data-parallel worker,
    since DDP averages gradients over ranks, which need not hold equally many examples.
    `seed` fixes the dropout masks of the step; `first` is the place of these examples in the
    batch they are a part of, whose masks are drawn as one. With mixup, `inputs` are mixed
    already: `share` of each loss is that of `targets`, the rest that of `other_targets`.
    """

    inputs: Tensor
    targets: Tensor
    divisor: float
    seed: int
    first: int = 0
    other_targets: Tensor | None = None
    share: float = 1.0

    def parts(self, count: int) -> Iterator[Batch]:
        """Yield `count` contiguous parts, whose gradients add up to that of the whole.

        They differ by at most one example, the last is the largest, and of a batch with fewer
        examples than `count` some are empty: every rank does the same number of passes.
        """
        if count == 1:
            yield self
            return
        total = len(self.targets)
        for index in range(count):
            rows = slice(total * index // count, total * (index + 1) // count)
            others = None if self.other_targets is None else self.other_targets[rows]
            yield replace(
                self,
                inputs=self.inputs[rows],
                targets=self.targets[rows],
                first=self.first + rows.start,
                other_targets=others,
            )


@dataclass(frozen=True)
class Recipe:
    """How the gradient of a step is made and applied; the defaults are the plain step.

    `accumulation_steps` is the number of micro-batches into which each batch is cut; their
    gradients are added up before the one update, and exchanged between ranks once.
    With `clip_norm`, gradients are scaled down to at most that norm, over all parameters.
    `around_forward` gives the context of each forward pass, such as autocast; losses are taken
    in full precision outside of it. `scaler` keeps small gradients of float16 from vanishing.
    `after_update` is called after each update, `note_loss` with the sum of each step's losses, a
    float64 scalar that stays on its device. `watch` notes where the time goes.
    """

    accumulation_steps: int = 1
    clip_norm: float | None = None
    around_forward: Callable[[Batch], AbstractContextManager[object]] = nullcontext
    scaler: GradScaler | None = None
    after_update: Callable[[], None] | None = None
    note_loss: Callable[[Tensor], None] | None = None
    watch: Stopwatch | None = None


@dataclass
class TrainTotals:
    """Sums over the steps done: losses (before each update), examples, steps."""

    loss_sum: float = 0.0
    examples: int = 0
    steps: int = 0

    @property
    def loss(self) -> float:
        """Mean training loss per example."""
        return self.loss_sum / self.examples if self.examples else float("nan")


def build_optimizer(cfg: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the torch optimizer that `cfg` names."""
    if isinstance(cfg, SgdConfig):
        return torch.optim.SGD(
            parameters,
            lr=cfg.lr,
            momentum=cfg.momentum,
            nesterov=cfg.nesterov,
            weight_decay=cfg.weight_decay,
        )
    if isinstance(cfg, AdafactorConfig):
        return torch.optim.Adafactor(
            parameters, lr=cfg.lr, beta2_decay=cfg.beta2_decay, weight_decay=cfg.weight_decay
        )
    assert isinstance(cfg, AdamConfig)
    kind = torch.optim.AdamW if cfg.name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, weight_decay=cfg.weight_decay)


def proximal_term(model: nn.Module, mu: float) -> Callable[[], Tensor] | None:
    """Return FedProx's (mu/2)||w - w0||^2 around the present weights, or None if mu is 0."""
    if mu == 0.0:
        return None
    anchors = [p.detach().clone() for p in model.parameters()]

    def term() -> Tensor:
        squares = [(p - a).square().sum() for p, a in zip(model.parameters(), anchors, strict=True)]
        return torch.stack(squares).sum() * (mu / 2)

    return term


def penalty_of(
    model: nn.Module, loss: LossConfig, proximal_mu: float = 0.0
) -> Callable[[], Tensor] | None:
    """Return the sum of `loss`'s penalties and the proximal term, or None if all are off."""
    wanted: list[Callable[[], Tensor]] = []
    if loss.l1 or loss.l2:
        weights = list(model.parameters())
        wanted.append(lambda: weight_penalty(weights, loss))
    proximal = proximal_term(model, proximal_mu)
    if proximal is not None:
        wanted.append(proximal)
    if len(wanted) < 2:
        return wanted[0] if wanted else None
    return lambda: torch.stack([term() for term in wanted]).sum()


def weight_penalty(weights: Iterable[Tensor], loss: LossConfig) -> Tensor:
    """Return `loss`'s penalties of `weights`, l1 ||w||_1 + (l2/2) ||w||^2, as one number, []."""
    each = [w.abs().sum() * loss.l1 + w.square().sum() * (loss.l2 / 2) for w in weights]
    return torch.stack(each).sum()


def train_batches(
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    batches: Iterable[Batch],
    penalty: Callable[[], Tensor] | None = None,
    recipe: Recipe = Recipe(),
    totals: TrainTotals | None = None,
) -> TrainTotals:
    """Take one optimizer step per batch and return the totals.

    `penalty` is added to every step's loss but not to the reported one. `totals` goes on from
    those of earlier batches: the sums are the same, bit for bit, as those of one call for all.
    """
    model.train()
    totals = TrainTotals() if totals is None else totals
    device = next(model.parameters()).device
    loss_sum = torch.tensor(totals.loss_sum, dtype=torch.float64, device=device)
    watch = recipe.watch or Stopwatch()
    watch.start()
    for batch in batches:
        watch.lap("data")
        optimizer.zero_grad(set_to_none=True)
        before = None if recipe.note_loss is None else loss_sum.clone()
        for number, part in enumerate(batch.parts(recipe.accumulation_steps), start=1):
            last = number == recipe.accumulation_steps
            with nullcontext() if last else _not_exchanged(model):
                loss_sum += _backward(model, task, part, penalty if last else None, recipe)
        watch.lap("forward_backward")
        _update(model, optimizer, recipe)
        if recipe.note_loss is not None and before is not None:
            recipe.note_loss(loss_sum - before)
        watch.lap("optimizer")
        watch.steps += 1
        totals.examples += len(batch.targets)
        totals.steps += 1
    totals.loss_sum = float(loss_sum)
    watch.lap("data")  # the end of the batches, and on a GPU what is queued: the sum waits for it
    return totals


def _backward(
    model: nn.Module,
    task: Task,
    batch: Batch,
    penalty: Callable[[], Tensor] | None,
    recipe: Recipe,
) -> Tensor:
    """Add the gradient of one pass to the parameters'; return the sum of its losses, []."""
    reseed(model, batch.seed, batch.first)
    with recipe.around_forward(batch):
        outputs = model(batch.inputs)
    if outputs.dtype in (torch.bfloat16, torch.float16):
        outputs = outputs.float()
    batch_loss = _loss_sum(task, outputs, batch)
    objective = batch_loss / batch.divisor
    if penalty is not None:
        objective = objective + penalty()
    if recipe.scaler is not None:
        objective = recipe.scaler.scale(objective)
    objective.backward()  # type: ignore[no-untyped-call]
    return batch_loss.detach()


def _update(model: nn.Module, optimizer: Optimizer, recipe: Recipe) -> None:
    scaler = recipe.scaler
    if recipe.clip_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    if scaler is None:
        optimizer.step()
    else:  # leaves the step out if a gradient is not finite, and lowers the scale
        scaler.step(optimizer)
        scaler.update()
    if recipe.after_update is not None:
        recipe.after_update()


def _loss_sum(task: Task, outputs: Tensor, batch: Batch) -> Tensor:
    total = task.losses(outputs, batch.targets).sum()
    if batch.other_targets is None:
        return total
    others = task.losses(outputs, batch.other_targets).sum()
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
