"""Many clients at once, or one at a time, in captured steps: what makes simulation fast.

Stacked clients advance in lockstep, step s of each together, sorted by their number of steps,
longest first. A shorter batch is padded and its padding weighs nothing. The stack shrinks to
the next power of two as clients finish (few shapes, so few captures); a client's weights are
taken out after its own last step. Every client gets the updates it would get alone, to
rounding, whatever its size.

Shape legend: K clients in the stack, A rows still computed (A <= K), B padded batch size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from heliotrope.models.dropout import dropout_keys

from .capture import NotCapturableError, Step, capture, eager_step
from .client import Clients, Instruction, Stack, Weights
from .local_optimizer import LocalOptimizer

__all__ = ["FastTrainer", "why_not_batched"]

_log = logging.getLogger(__name__)


def why_not_batched(model: nn.Module) -> str | None:
    """Return why the clients of `model` cannot be trained stacked, or None if they can."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            return f"layer {name} ({type(module).__name__}) has a fused kernel that vmap cannot map"
    if len(list(model.parameters())) != len(model.state_dict()):
        return "the model has buffers (such as BatchNorm statistics) that training updates"
    return None


class FastTrainer:
    """Trains clients of one model by captured steps, kept by shape from round to round."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._model = clients.model
        self._names = [name for name, _ in self._model.named_parameters()]
        self._steps: dict[tuple[int, ...], Step] = {}

    def train_one(
        self, weights: Weights, order: Instruction, client: int, max_steps: int | None = None
    ) -> Stack:
        """Train one client by itself; raises `NotCapturableError` if its step cannot be replayed.

        Returns a stack of one.
        """
        clients, train = self._clients, self._clients.train
        start = self._start(weights)
        trained = [torch.stack([w]) for w in start]  # [1, *shape], always a copy
        mine = [w[0] for w in trained]
        means: list[Tensor] = []
        sizes: list[int] = []
        with torch.inference_mode():
            optimizer = LocalOptimizer(clients.optimizer, start, mine, order.proximal_mu)
            plan = islice(clients.batches(order.server_round, client), max_steps)
            for number, rows in enumerate(plan):
                batch = (
                    mine,
                    self._keys(order, [client], number, stacked=False),
                    train.inputs.index_select(0, rows),
                    train.targets.index_select(0, rows),
                )
                step, evenly = self._step_of(batch, (len(rows),))
                mean, gradients = step(*batch, evenly)
                optimizer.step(mine, gradients)
                means.append(mean)
                sizes.append(len(rows))
        counts = torch.tensor(sizes, dtype=torch.float64)
        return Stack(
            clients=(client,),
            arrays=dict(zip(self._names, trained, strict=True)),
            examples=(clients.population.train_size(client),),
            loss_sums=(float((torch.stack(means).cpu().double() * counts).sum()),),
            seen=(sum(sizes),),
            steps=(len(sizes),),
        )

    def train_stacked(
        self,
        weights: Weights,
        order: Instruction,
        cohort: Sequence[int],
        max_steps: int | None = None,
    ) -> Stack:
        """Train all of `cohort` from the global `weights`, together."""
        clients, train = self._clients, self._clients.train
        plan = _Plan.of(clients, order, cohort, max_steps)
        start = self._start(weights)
        stack = [torch.stack([w] * len(cohort)) for w in start]  # [K, *shape]
        final = [torch.empty_like(w) for w in stack]
        loss_sums = torch.zeros(len(cohort), dtype=torch.float64)
        with torch.inference_mode():
            optimizer = LocalOptimizer(clients.optimizer, start, stack, order.proximal_mu)
            for number in range(plan.steps):
                working, positions, sizes = plan.at(number)
                active = len(positions)
                flat = positions.view(-1).to(train.inputs.device)
                shape = positions.shape
                batch = (
                    [w[:active] for w in stack],
                    self._keys(order, plan.order[:active], number, stacked=True),
                    train.inputs.index_select(0, flat).view(*shape, *train.inputs.shape[1:]),
                    train.targets.index_select(0, flat).view(*shape, *train.targets.shape[1:]),
                )
                step, _ = self._step_of(batch, tuple(shape))
                means, gradients = step(*batch, _row_means(positions, sizes, stack[0]))
                optimizer.step(batch[0], gradients)
                loss_sums[:active] += means.cpu() * sizes
                done = slice(plan.working(number + 1), working)
                for result, trained in zip(final, stack, strict=True):
                    result[done] = trained[done]
        return plan.in_order_of(
            cohort, clients, dict(zip(self._names, final, strict=True)), loss_sums
        )

    def _start(self, weights: Weights) -> list[Tensor]:
        return [weights[name].to(p.detach()) for name, p in self._model.named_parameters()]

    def _keys(
        self, order: Instruction, cohort: Sequence[int], step: int, *, stacked: bool
    ) -> dict[str, Tensor]:
        """Return each dropout layer's key: int64 [], or [A] for a stack."""
        rows = [
            dropout_keys(self._model, self._clients.step_seed(order.server_round, client, step))
            for client in cohort
        ]
        device = self._clients.train.inputs.device
        return {
            name: torch.tensor([row[name] for row in rows] if stacked else key, device=device)
            for name, key in rows[0].items()
        }

    def _step_of(self, batch: _Batch, shape: tuple[int, ...]) -> tuple[Step, Tensor]:
        """Return the step for batches of this shape, and weights that count examples evenly."""
        evenly = torch.full(shape, 1 / shape[-1], dtype=batch[0][0].dtype, device=batch[2].device)
        if shape not in self._steps:
            self._steps[shape] = self._captured(batch, evenly)
        return self._steps[shape], evenly

    def _captured(self, batch: _Batch, weights: Tensor) -> Step:
        stacked = weights.dim() == 2
        losses = vmap(self._losses, randomness="error") if stacked else self._losses
        with torch.inference_mode(mode=False):
            parameters, keys, inputs, targets = batch
            copies = [p.clone() for p in parameters]
            try:
                if weights.is_cuda:  # autograd works in threads of its own there, unseen
                    raise NotCapturableError("it runs on a GPU")
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


def _row_means(positions: Tensor, sizes: Tensor, like: Tensor) -> Tensor:
    """Return weights [A, B] that give each row's mean: 1/size for examples, 0 for padding."""
    mask = torch.arange(positions.shape[1]) < sizes[:, None]
    return (mask.to(like.dtype) / sizes.clamp(min=1)[:, None]).to(like.device)


_Batch = tuple[Sequence[Tensor], Mapping[str, Tensor], Tensor, Tensor]


@dataclass(frozen=True)
class _Plan:
    """The batches of K clients in lockstep, longest client first, padded to one width."""

    order: list[int]  # clients, longest first
    batches: list[list[Tensor]]  # [K][steps of that client], positions in the training split
    width: int  # B

    @classmethod
    def of(
        cls, clients: Clients, order: Instruction, cohort: Sequence[int], limit: int | None
    ) -> _Plan:
        batches = {c: list(islice(clients.batches(order.server_round, c), limit)) for c in cohort}
        longest_first = sorted(cohort, key=lambda c: (-len(batches[c]), c))
        width = max(len(rows) for mine in batches.values() for rows in mine)
        return cls(longest_first, [batches[c] for c in longest_first], width)

    @property
    def steps(self) -> int:
        return len(self.batches[0])

    def working(self, step: int) -> int:
        """Return how many clients have a batch at `step`."""
        return sum(len(mine) > step for mine in self.batches)

    def at(self, step: int) -> tuple[int, Tensor, Tensor]:
        """Return clients at work, positions [A, B] and sizes [A] of one step.

        A row's positions beyond its size are padding; a finished client's size is 0.
        """
        working = self.working(step)
        active = min(len(self.batches), 1 << (working - 1).bit_length())
        positions = torch.zeros(active, self.width, dtype=torch.int64)
        sizes = torch.zeros(active, dtype=torch.int64)
        for row in range(working):
            chosen = self.batches[row][step]
            positions[row, : len(chosen)] = chosen
            sizes[row] = len(chosen)
        return working, positions, sizes

    def in_order_of(
        self,
        cohort: Sequence[int],
        clients: Clients,
        arrays: Mapping[str, Tensor],
        loss_sums: Tensor,
    ) -> Stack:
        """Return the results with rows in the order of `cohort`."""
        place = {client: row for row, client in enumerate(self.order)}
        rows = torch.tensor([place[client] for client in cohort])
        chosen = [self.batches[row] for row in rows.tolist()]
        return Stack(
            clients=tuple(cohort),
            arrays={
                name: value.index_select(0, rows.to(value.device)) for name, value in arrays.items()
            },
            examples=tuple(clients.population.train_size(client) for client in cohort),
            loss_sums=tuple(loss_sums[rows].tolist()),
            seen=tuple(sum(len(batch) for batch in mine) for mine in chosen),
            steps=tuple(len(mine) for mine in chosen),
        )
