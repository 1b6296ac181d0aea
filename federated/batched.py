"""Many clients at once, or one at a time, in captured steps: what makes simulation fast.

Stacked clients advance in lockstep as `plan` lays them out. A shorter batch is padded and its
padding weighs nothing. The stack shrinks as clients finish; a client's weights are taken out
after its own last step. Every client gets the updates it would get alone, to rounding,
whatever its size.

Shape legend: K clients in the stack, A still computed (A <= K), R rows of the plan, B largest
batch.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from heliotrope.models.seeded import layer_keys

from .capture import NotCapturableError, Step, capture, eager_step
from .client import Clients, Instruction, Stack, Weights
from .local_optimizer import LocalOptimizer
from .plan import Plan
from .time_limit import UNLIMITED, Limit

__all__ = ["FastTrainer", "why_not_fast"]

_log = logging.getLogger(__name__)

_capturing = threading.Lock()  # torch keeps some of a dispatch mode's state in globals


def why_not_fast(model: nn.Module) -> str | None:
    """Return why no step of `model` can be captured or stacked, or None if it may be."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    others = [name for name in model.state_dict() if name not in trained]
    if others:
        return f"{others[0]} is a buffer (as BatchNorm has), frozen, or shared by two layers"
    return None


class FastTrainer:
    """Trains clients of one model by captured steps, kept by shape from round to round."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._model = clients.model
        self._names = [name for name, _ in self._model.named_parameters()]
        self._steps: dict[tuple[int, ...], Step] = {}
        self._evenly: dict[int, Tensor] = {}

    def train_one(
        self, weights: Weights, order: Instruction, client: int, limit: Limit = UNLIMITED
    ) -> Stack:
        """Train one client by itself; raises `NotCapturableError` if its step cannot be replayed.

        Returns a stack of one.
        """
        train = self._clients.train
        plan = self._clients.plan(order.server_round, [client], limit.max_steps)
        start = self._start(weights)
        trained = [torch.stack([w]) for w in start]  # [1, *shape], always a copy
        mine = [w[0] for w in trained]
        positions, keys = self._on_device(plan)
        means: list[Tensor] = []
        with torch.inference_mode():
            optimizer = self._optimizer(order, start, mine, plan)
            for row, size in enumerate(plan.sizes.tolist()):
                limit.check()
                chosen = positions[row, :size]
                batch = (
                    mine,
                    {name: key[row] for name, key in keys.items()},
                    train.inputs.index_select(0, chosen),
                    train.targets.index_select(0, chosen),
                )
                weight = self._even_weights(size)
                mean, gradients = self._step_of(batch, weight)(*batch, weight)
                optimizer.step(mine, gradients)
                means.append(mean)
        return self._stack(plan, trained, torch.stack(means).cpu().double() @ plan.sizes.double())

    def train_stacked(
        self,
        weights: Weights,
        order: Instruction,
        cohort: Sequence[int],
        limit: Limit = UNLIMITED,
    ) -> Stack:
        """Train all of `cohort` from the global `weights`, together; the longest comes first."""
        train, shape = self._clients.train, self._clients.train.inputs.shape[1:]
        plan = self._clients.plan(order.server_round, cohort, limit.max_steps)
        start = self._start(weights)
        stack = [w.expand(len(cohort), *w.shape).clone() for w in start]  # [K, *shape]
        ragged = plan.steps[-1] < plan.steps[0]
        final = [torch.empty_like(w) for w in stack] if ragged else stack
        positions, keys = self._on_device(plan)
        row_means = _row_means(plan, stack[0])
        sums = torch.zeros(len(cohort), dtype=torch.float64, device=stack[0].device)
        sizes = plan.sizes.to(sums)
        with torch.inference_mode():
            optimizer = self._optimizer(order, start, stack, plan)
            for number in range(plan.steps[0]):
                limit.check()
                rows = plan.rows(number)
                active, flat = rows.stop - rows.start, positions[rows].view(-1)
                batch = (
                    [w[:active] for w in stack],
                    {name: key[rows] for name, key in keys.items()},
                    train.inputs.index_select(0, flat).view(active, -1, *shape),
                    train.targets.index_select(0, flat).view(active, -1),
                )
                step = self._step_of(batch, row_means[rows])
                means, gradients = step(*batch, row_means[rows])
                optimizer.step(batch[0], gradients)
                sums[:active].addcmul_(means.double(), sizes[rows])
                if ragged:
                    done = plan.finishing(number)
                    for result, trained in zip(final, stack, strict=True):
                        result[done] = trained[done]
        return self._stack(plan, final, sums)

    def _optimizer(
        self, order: Instruction, start: Sequence[Tensor], trained: Sequence[Tensor], plan: Plan
    ) -> LocalOptimizer:
        controls = None
        if order.controls is not None:
            of = [order.controls[client] for client in plan.clients]
            controls = [
                torch.stack([control[name] for control in of]).to(w).view(w.shape)
                for name, w in zip(self._names, trained, strict=True)
            ]
        return LocalOptimizer(self._clients, start, trained, order.proximal_mu, controls)

    def _start(self, weights: Weights) -> list[Tensor]:
        return [weights[name].to(p.detach()) for name, p in self._model.named_parameters()]

    def _on_device(self, plan: Plan) -> tuple[Tensor, dict[str, Tensor]]:
        """Return positions, and each seeded layer's keys, int64 [R]."""
        device = self._clients.train.inputs.device
        keys = layer_keys(self._model, plan.seeds)
        return plan.positions.to(device), {name: key.to(device) for name, key in keys.items()}

    def _stack(self, plan: Plan, trained: Sequence[Tensor], loss_sums: Tensor) -> Stack:
        return Stack(
            clients=plan.clients,
            arrays=dict(zip(self._names, trained, strict=True)),
            examples=tuple(self._clients.population.train_sizes(plan.clients)),
            loss_sums=tuple(loss_sums.view(-1).tolist()),
            seen=plan.seen,
            steps=plan.steps,
        )

    def _even_weights(self, size: int) -> Tensor:
        """Return weights [B] that count the examples of a batch evenly."""
        if size not in self._evenly:
            like = next(self._model.parameters())
            self._evenly[size] = torch.full((size,), 1 / size, dtype=like.dtype, device=like.device)
        return self._evenly[size]

    def _step_of(self, batch: _Batch, weights: Tensor) -> Step:
        """Return the step for batches of this shape, captured at its first use."""
        shape = tuple(weights.shape)
        if shape not in self._steps:
            self._steps[shape] = self._captured(batch, weights)
        return self._steps[shape]

    def _captured(self, batch: _Batch, weights: Tensor) -> Step:
        stacked = weights.dim() == 2
        losses = vmap(self._losses, randomness="error") if stacked else self._losses
        with torch.inference_mode(mode=False):
            parameters, keys, inputs, targets = batch
            copies = [p.clone() for p in parameters]
            try:
                if weights.is_cuda:  # autograd works in threads of its own there, unseen
                    raise NotCapturableError("it runs on a GPU")
                with _capturing:
                    step = capture(
                        losses,
                        copies,
                        {name: key.clone() for name, key in keys.items()},
                        inputs.clone(),
                        targets.clone(),
                        weights.clone(),
                    )
            except NotCapturableError as error:
                if not stacked:
                    raise
                _log.info("stacked steps are not captured: %s", error)
                return eager_step(losses)
        _log.info("captured a step of shape %s", tuple(weights.shape))
        return step

    def _losses(
        self,
        parameters: Sequence[Tensor],
        keys: Mapping[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
    ) -> Tensor:
        """Return one client's losses, [B], as a function of its weights."""
        state = dict(zip(self._names, parameters, strict=True)) | dict(keys)
        return self._clients.task.losses(functional_call(self._model, state, (inputs,)), targets)


def _row_means(plan: Plan, like: Tensor) -> Tensor:
    """Return weights [R, B] that give each row's mean: 1/size for examples, 0 for padding."""
    mask = torch.arange(plan.positions.shape[1]) < plan.sizes[:, None]
    return (mask.to(like.dtype) / plan.sizes.clamp(min=1)[:, None]).to(like.device)


_Batch = tuple[Sequence[Tensor], Mapping[str, Tensor], Tensor, Tensor]
