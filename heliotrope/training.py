"""THE inner loop: a data-parallel worker and a federated client both train with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from heliotrope.config import AdamConfig, OptimizerConfig, SgdConfig
from heliotrope.models.seeded import reseed
from heliotrope.tasks import Task

__all__ = ["Batch", "TrainTotals", "build_optimizer", "proximal_term", "train_batches"]


@dataclass(frozen=True)
class Batch:
    """One step's examples.

    `divisor` turns the sum of losses into the quantity whose gradient is taken: the number of
    examples for a plain mean; global batch size / world size for a data-parallel worker,
    since DDP averages gradients over ranks, which need not hold equally many examples.
    `seed` fixes the dropout masks of the step; `first` is the place of these examples in the
    batch they are a part of, whose masks are drawn as one.
    """

    inputs: Tensor
    targets: Tensor
    divisor: float
    seed: int
    first: int = 0


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


def train_batches(
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    batches: Iterable[Batch],
    penalty: Callable[[], Tensor] | None = None,
    clip_norm: float | None = None,
    totals: TrainTotals | None = None,
) -> TrainTotals:
    """Take one optimizer step per batch and return the totals.

    `penalty` is added to every step's loss but not to the reported one. Gradients whose norm,
    of all weights together, exceeds `clip_norm` are scaled down to it. `totals` goes on from
    those of earlier batches: the sums are the same, bit for bit, as those of one call for all.
    """
    model.train()
    totals = TrainTotals() if totals is None else totals
    device = next(model.parameters()).device
    loss_sum = torch.tensor(totals.loss_sum, dtype=torch.float64, device=device)
    for batch in batches:
        reseed(model, batch.seed, batch.first)
        optimizer.zero_grad(set_to_none=True)
        batch_loss = task.losses(model(batch.inputs), batch.targets).sum()
        objective = batch_loss / batch.divisor
        if penalty is not None:
            objective = objective + penalty()
        objective.backward()  # type: ignore[no-untyped-call]
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        loss_sum += batch_loss.detach()
        totals.examples += len(batch.targets)
        totals.steps += 1
    totals.loss_sum = float(loss_sum)
    return totals
