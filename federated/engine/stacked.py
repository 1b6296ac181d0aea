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
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from heliotrope.data import Batch
from heliotrope.models.layers.seeded import layer_keys, seeded_layers

from ..algorithms import gradient_term
from ..client_state import ClientStates
from ..updates import Instruction, Stack, Weights
from .batch_plan import BatchPlan
from .capture import (
    CapturedStep,
    Losses,
    NotCapturableError,
    Step,
    capture,
    check_ends,
    eager_step,
)
from .context import TrainingContext
from .layers.seeded_functions import FunctionDraws, function_key, may_draw
from .layers.stackable import Stackable
from .local_optimizer import LocalOptimizer
from .resizing import StackSizes
from .time_limit import UNLIMITED, Limit

__all__ = ["FastTrainer"]

_log = logging.getLogger(__name__)

_FUNCTIONS = ""  # among the keys: that of draws inside functions
_capturing = threading.Lock()  # torch keeps some of a dispatch mode's state in globals

_Given = tuple[Sequence[Tensor], Mapping[str, Tensor], Batch, Tensor]
_Shape = tuple[tuple[int, ...], ...]


class FastTrainer:
    """Trains clients of one model by captured steps, kept by shape from round to round.

    What is not trained (buffers, frozen weights) is the same for all clients of a round. On a GPU,
    or with `captures` false, stacked steps are run by autograd, and single ones not at all.
    `captured` are steps that any trainer of such a model may replay, by shape; others of the
    process may add to them.
    """

    def __init__(
        self,
        context: TrainingContext,
        *,
        captures: bool = True,
        captured: dict[_Shape, Step] | None = None,
    ) -> None:
        self._context = context
        self._model = context.fresh_model(context.model.state_dict()).train()
        self._captures = captures and context.train.device.type != "cuda"
        trained = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        self._names = list(trained)
        by_id = {id(p): name for name, p in trained.items()}
        state = self._model.state_dict(keep_vars=True)
        self._tied = {n: by_id[id(v)] for n, v in state.items() if id(v) in by_id}
        self._fixed = {n: v.detach() for n, v in state.items() if id(v) not in by_id}
        self._types = {name: p.dtype for name, p in trained.items()}
        self._instruction = list(state)
        self._draws = FunctionDraws()
        self._stackable = Stackable(self._model, self._draws)
        self._seeded = seeded_layers(self._model)
        self._steps: dict[_Shape, Step] = {}
        self._sizes = StackSizes()
        self.captured = {} if captured is None else captured

    def costs(self) -> tuple[int, int] | None:
        """Return the most work of a step of one client so far, and the bytes of its activations.

        None if none has been captured. See `CapturedStep`.
        """
        found = [
            (step.work // clients, step.activation_bytes // clients)
            for (rows, *_), step in self._steps.items()
            if isinstance(step, CapturedStep)
            for clients in [rows[0] if len(rows) == 2 else 1]
        ]
        return max(found, default=None)

    def train_one(
        self, weights: Weights, instruction: Instruction, client: int, limit: Limit = UNLIMITED
    ) -> Stack:
        """Train one client by itself; raises `NotCapturableError` if its step cannot be replayed.

        Returns a stack of one.
        """
        train = self._context.train
        plan = self._context.plan(instruction.server_round, [client], limit.max_steps)
        own = {} if instruction.states is None else instruction.states.of(client)
        start = self._start(self._context.personal.start(weights, own))
        trained = [torch.stack([w]) for w in start]  # [1, *shape], always a copy
        mine = [w[0] for w in trained]
        positions, keys = self._on_device(plan)
        row_means = self._row_means(plan)
        means: list[Tensor] = []
        if not self._captures:
            raise NotCapturableError("a single client's step is only captured on a CPU")
        with torch.inference_mode():
            optimizer = self._optimizer(instruction, start, mine, client)
            sizes = plan.sizes.tolist()
            batches = train.batches(positions[row, :size] for row, size in enumerate(sizes))
            for row, (size, batch) in enumerate(zip(sizes, batches, strict=True)):
                limit.check()
                given = (
                    mine,
                    {name: key[row] for name, key in keys.items()},
                    batch,
                    row_means[row, :size],
                )
                mean, gradients = self._step_of(given)(*given)
                optimizer.step(mine, gradients)
                means.append(mean)
        sums = torch.stack(means).cpu().double() @ self._context.row_weights(plan).double()
        return self._stack(plan, trained, sums)

    def train_stacked(
        self,
        weights: Weights,
        instruction: Instruction,
        cohort: Sequence[int],
        limit: Limit = UNLIMITED,
    ) -> Stack:
        """Train all of `cohort` from the global `weights`, together; the longest comes first."""
        train = self._context.train
        plan = self._context.plan(instruction.server_round, cohort, limit.max_steps)
        start = self._start(self._context.personal.start(weights, {}))
        stack = [w.expand(len(cohort), *w.shape).clone() for w in start]  # [K, *shape]
        if instruction.states is not None:
            self._put_states(instruction.states, plan.clients, start, stack)
        ragged = plan.steps[-1] < plan.steps[0]
        final = [torch.empty_like(w) for w in stack] if ragged else stack
        positions, keys = self._on_device(plan)
        row_means = self._row_means(plan)
        sums = torch.zeros(len(cohort), dtype=torch.float64, device=stack[0].device)
        row_weights = self._context.row_weights(plan).to(sums)
        with torch.inference_mode():
            optimizer = self._optimizer(instruction, start, stack, plan.clients)
            steps = [plan.rows(number) for number in range(plan.steps[0])]
            batches = train.batches(positions[rows] for rows in steps)
            for number, (rows, batch) in enumerate(zip(steps, batches, strict=True)):
                limit.check()
                active = rows.stop - rows.start
                given = (
                    [w[:active] for w in stack],
                    {name: key[rows] for name, key in keys.items()},
                    batch,
                    row_means[rows],
                )
                means, gradients = self._step_of(given)(*given)
                optimizer.step(given[0], gradients)
                sums[:active].addcmul_(means.double(), row_weights[rows])
                if ragged:
                    done = plan.finishing(number)
                    for result, trained in zip(final, stack, strict=True):
                        result[done] = trained[done]
        return self._stack(plan, final, sums)

    def _put_states(
        self,
        states: ClientStates,
        clients: Sequence[int],
        start: list[Tensor],
        stack: Sequence[Tensor],
    ) -> None:
        """Put the clients' own weights into a stack, and with what they start, [K, *shape]."""
        each = [states.of(client) for client in clients]
        for index, name in enumerate(self._names):
            if name in states.arrays:
                stack[index].copy_(torch.stack([own[name] for own in each]))
                start[index] = stack[index].clone()

    def _optimizer(
        self,
        instruction: Instruction,
        start: Sequence[Tensor],
        trained: Sequence[Tensor],
        clients: Sequence[int] | int,
    ) -> LocalOptimizer:
        """Return the optimizer of `trained`: of one client, or of the clients of a stack."""
        names = self._names
        began = dict(zip(names, start, strict=True))
        added = gradient_term(instruction.algorithms, began, instruction.states_of(clients))
        return LocalOptimizer(
            instruction.optimizer(self._context.optimizer),
            self._context.loss,
            trained,
            stacked=not isinstance(clients, int),
            term=None if added is None else lambda index, weight: added(names[index], weight),
        )

    def _start(self, weights: Weights) -> list[Tensor]:
        """Return what training begins with; what is not trained is put into the model."""
        for name, value in self._fixed.items():
            value.copy_(weights[name])
        like = next(self._model.parameters())
        return [weights[name].to(like.device, self._types[name]) for name in self._names]

    def _on_device(self, plan: BatchPlan) -> tuple[Tensor, dict[str, Tensor]]:
        """Return positions, and each seeded layer's keys, int64 [R]."""
        device = self._context.train.device
        keys = layer_keys(self._model, plan.seeds)
        if may_draw(self._model):
            keys[_FUNCTIONS] = function_key(plan.seeds)
        return plan.positions.to(device), {name: key.to(device) for name, key in keys.items()}

    def _stack(self, plan: BatchPlan, trained: Sequence[Tensor], loss_sums: Tensor) -> Stack:
        of = dict(zip(self._names, trained, strict=True))
        count = len(plan.clients)
        arrays = {  # in the order of the model's state
            name: of[self._tied[name]]
            if name in self._tied
            else self._fixed[name].expand(count, *self._fixed[name].shape).clone()
            for name in self._instruction
        }
        sent, states = self._context.personal.finish(arrays)
        return Stack(
            clients=plan.clients,
            arrays=sent,
            weights=self._context.weights_of(plan.clients),
            loss_sums=tuple(loss_sums.view(-1).tolist()),
            seen=plan.seen,
            weights_seen=self._context.weights_seen(plan),
            steps=plan.steps,
            states=states,
        )

    def _row_means(self, plan: BatchPlan) -> Tensor:
        """Return the examples' factors [R, B] that give each row's mean: 0 for padding."""
        like = next(self._model.parameters())
        mask = torch.arange(plan.positions.shape[1]) < plan.sizes[:, None]
        weights = self._context.row_weights(plan).clamp(min=1)
        return (mask.to(_precision(self._types.values())) / weights[:, None]).to(like.device)

    def _step_of(self, given: _Given) -> Step:
        """Return the step for batches of these shapes, captured at its first use."""
        _, _, batch, factors = given
        shape = (tuple(factors.shape), *(tuple(value.shape) for value in batch.values()))
        if shape not in self._steps:
            self._steps[shape] = self._new_step(shape, given)
        return self._steps[shape]

    def _new_step(self, shape: _Shape, given: _Given) -> Step:
        parameters, keys, batch, factors = given
        stacked = factors.dim() == 2
        losses: Losses = vmap(self._losses, randomness="error") if stacked else self._losses
        with torch.inference_mode(mode=False):
            try:
                if not self._captures:  # on a GPU, autograd works in threads of its own, unseen
                    raise NotCapturableError("it runs on a GPU, or is not to be captured")
                with _capturing:
                    if shape in self.captured:
                        return self.captured[shape]
                    resized = self._resized(shape, given, losses) if stacked else None
                    if resized is not None:
                        return resized
                    step = capture(
                        losses,
                        [p.clone() for p in parameters],
                        {name: key.clone() for name, key in keys.items()},
                        {name: value.clone() for name, value in batch.items()},
                        factors.clone(),
                    )
                    if step.pure:
                        self.captured[shape] = step
                    if stacked:
                        self._sizes.add(shape, step)
            except NotCapturableError as error:
                if not stacked:
                    raise
                _log.info("stacked steps are not captured: %s", error)
                return eager_step(losses)
        _log.info("captured a step of shape %s", tuple(factors.shape))
        return step

    def _resized(self, shape: _Shape, given: _Given, losses: Losses) -> Step | None:
        """Return the step of a stack that follows from those of two other sizes, if it does."""
        step = self._sizes.step(shape)
        if step is not None:
            try:
                check_ends(step, losses, *given)
            except NotCapturableError as error:
                _log.info("a step of shape %s is recorded: %s", shape[0], error)
                return None
        return step

    def _losses(
        self,
        parameters: Sequence[Tensor],
        keys: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
    ) -> Tensor:
        """Return one client's losses, [B], as a function of its weights."""
        state = dict(zip(self._names, parameters, strict=True)) | dict(keys)
        for layer in self._seeded:
            layer.calls = 0
        if _FUNCTIONS in state:
            self._draws.begin(state.pop(_FUNCTIONS))
        task = self._context.task
        with self._stackable:
            outputs = functional_call(self._model, state, task.arguments(batch))
        if outputs.dtype in (torch.bfloat16, torch.float16):
            outputs = outputs.float()
        return task.losses(outputs, batch)


def _precision(types: Iterable[torch.dtype]) -> torch.dtype:
    """Return the type of the examples' factors: a share such as 1/10 is none in bfloat16."""
    return torch.float64 if torch.float64 in types else torch.float32
