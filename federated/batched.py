"""Many clients at once: their models stacked, each local step one vectorised call.

Clients advance in lockstep, step s of each together. They are sorted by their number of
steps, longest first, so that those still at work are always the first `active` of the stack;
a shorter batch is padded and its padding masked out of the loss. Every client therefore gets
the very updates it would get alone, to rounding, whatever its size.

Shape legend: K clients in the stack, A active ones (A <= K), B padded batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from heliotrope.config import AdamConfig, OptimizerConfig, SgdConfig
from heliotrope.models.dropout import dropout_keys

from .client import Clients, Instruction, Update, Weights

__all__ = ["train_stacked", "why_not_batched"]


def why_not_batched(model: nn.Module) -> str | None:
    """Return why the clients of `model` cannot be trained stacked, or None if they can."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            return f"layer {name} ({type(module).__name__}) has a fused kernel that vmap cannot map"
    if len(list(model.parameters())) != len(model.state_dict()):
        return "the model has buffers (such as BatchNorm statistics) that training updates"
    return None


@dataclass(frozen=True)
class _Plan:
    """The batches of K clients in lockstep, longest client first."""

    order: list[int]  # clients, longest first
    batches: list[list[Tensor]]  # [K][steps of that client], positions in the training split

    @property
    def steps(self) -> int:
        return len(self.batches[0])

    def at(self, step: int) -> tuple[int, Tensor, Tensor, Tensor]:
        """Return active count A, positions [A, B], mask [A, B] and sizes [A] of one step."""
        rows = [mine[step] for mine in self.batches if len(mine) > step]
        sizes = torch.tensor([len(row) for row in rows])
        width = int(sizes.max())
        positions = torch.zeros(len(rows), width, dtype=torch.int64)
        for row, chosen in enumerate(rows):
            positions[row, : len(chosen)] = chosen
        mask = torch.arange(width) < sizes[:, None]
        return len(rows), positions, mask, sizes


def _plan(clients: Clients, order: Instruction, cohort: Sequence[int], limit: int | None) -> _Plan:
    batches = {c: list(clients.batches(order.server_round, c))[:limit] for c in cohort}
    longest_first = sorted(cohort, key=lambda c: (-len(batches[c]), c))
    return _Plan(longest_first, [batches[c] for c in longest_first])


def train_stacked(
    clients: Clients,
    weights: Weights,
    order: Instruction,
    cohort: Sequence[int],
    max_steps: int | None = None,
) -> list[Update]:
    """Train all of `cohort` from the global `weights`; updates come in the order of `cohort`."""
    plan = _plan(clients, order, cohort, max_steps)
    model = clients.model.train()
    device = next(model.parameters()).device
    names = [name for name, _ in model.named_parameters()]
    start = [weights[name].to(p) for name, p in model.named_parameters()]
    stack = [torch.stack([w] * len(cohort)) for w in start]  # [K, *shape], always a copy
    optimizer = _StackedOptimizer(clients.optimizer, stack)
    loss_sums = torch.zeros(len(cohort), dtype=torch.float64, device=device)
    seen = torch.zeros(len(cohort), dtype=torch.int64)
    gradient = vmap(grad_and_value(_objective(clients, names), has_aux=True), randomness="error")

    for step in range(plan.steps):
        active, positions, mask, sizes = plan.at(step)
        parameters = [p[:active] for p in stack]
        gradients, (_, losses) = gradient(
            parameters,
            _keys(clients, order, plan.order[:active], step, device),
            clients.train.inputs[positions],
            clients.train.targets[positions],
            mask.to(device),
            sizes.to(device),
        )
        if order.proximal_mu:
            gradients = [
                g + order.proximal_mu * (p - w)
                for g, p, w in zip(gradients, parameters, start, strict=True)
            ]
        optimizer.step(active, gradients)
        loss_sums[:active] += losses
        seen[:active] += sizes

    updates = {
        client: Update(
            clients=(client,),
            arrays={name: p[row] for name, p in zip(names, stack, strict=True)},
            examples=clients.population.train_size(client),
            loss_sum=float(loss_sums[row]),
            seen=int(seen[row]),
            steps=len(plan.batches[row]),
        )
        for row, client in enumerate(plan.order)
    }
    return [updates[client] for client in cohort]


def _objective(clients: Clients, names: list[str]):  # type: ignore[no-untyped-def]
    """Return the loss of one client's batch as a function of its weights, for vmap."""
    model, task = clients.model, clients.task

    def objective(
        parameters: list[Tensor],
        keys: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor,
        size: Tensor,
    ) -> tuple[Tensor, Tensor]:
        state = dict(zip(names, parameters, strict=True)) | keys
        losses = task.losses(functional_call(model, state, (inputs,)), targets)
        total = (losses * mask).sum()
        return total / size, total

    return objective


def _keys(
    clients: Clients, order: Instruction, active: Sequence[int], step: int, device: torch.device
) -> dict[str, Tensor]:
    """Return each dropout layer's key for each active client, int64 [A]."""
    rows = [
        dropout_keys(clients.model, clients.step_seed(order.server_round, client, step))
        for client in active
    ]
    return {name: torch.tensor([row[name] for row in rows], device=device) for name in rows[0]}


class _StackedOptimizer:
    """torch.optim's SGD, Adam and AdamW on stacked parameters, updating the first A clients.

    Step numbers are common to the active clients (all start together), so Adam's bias
    correction is one number. State of clients that are done is left as it is.
    """

    def __init__(self, cfg: OptimizerConfig, stack: list[Tensor]) -> None:
        self._cfg = cfg
        self._stack = stack
        self._count = 0
        slots = 2 if isinstance(cfg, AdamConfig) else int(getattr(cfg, "momentum", 0.0) > 0)
        self._slots = [[torch.zeros_like(p) for p in stack] for _ in range(slots)]

    def step(self, active: int, gradients: Sequence[Tensor]) -> None:
        """Update the first `active` clients in place from gradients [A, *shape]."""
        self._count += 1
        for index, gradient in enumerate(gradients):
            parameter = self._stack[index][:active]
            slots = [slot[index][:active] for slot in self._slots]
            if isinstance(self._cfg, SgdConfig):
                self._sgd(self._cfg, parameter, gradient, slots)
            else:
                assert isinstance(self._cfg, AdamConfig)
                self._adam(self._cfg, parameter, gradient, slots)

    def _sgd(self, cfg: SgdConfig, parameter: Tensor, step: Tensor, slots: list[Tensor]) -> None:
        if cfg.weight_decay:
            step = step + cfg.weight_decay * parameter
        if slots:
            momentum = slots[0].mul_(cfg.momentum).add_(step)
            step = step + cfg.momentum * momentum if cfg.nesterov else momentum
        parameter.sub_(step, alpha=cfg.lr)

    def _adam(self, cfg: AdamConfig, parameter: Tensor, step: Tensor, slots: list[Tensor]) -> None:
        if cfg.weight_decay and cfg.name == "adamw":
            parameter.mul_(1 - cfg.lr * cfg.weight_decay)
        elif cfg.weight_decay:
            step = step + cfg.weight_decay * parameter
        first, second = slots
        beta_1, beta_2 = cfg.betas
        first.lerp_(step, 1 - beta_1)
        second.mul_(beta_2).addcmul_(step, step, value=1 - beta_2)
        correction_1, correction_2 = 1 - beta_1**self._count, 1 - beta_2**self._count
        denominator = (second.sqrt() / correction_2**0.5).add_(cfg.eps)
        parameter.addcdiv_(first, denominator, value=-cfg.lr / correction_1)
