"""One client's work, sequentially: the readable reference that `batched` must equal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.optim import Optimizer

from heliotrope.config import OptimizerConfig
from heliotrope.evaluation import evaluate
from heliotrope.metrics import Metrics
from heliotrope.seeding import isolated_rng, seed
from heliotrope.training.loop import (
    Recipe,
    TrainingBatch,
    penalty_of,
    train_batches,
)
from heliotrope.training.optimizers import build_optimizer

from ..algorithms import gradient_term
from ..updates import Instruction, Stack, Weights
from .context import TrainingContext
from .layers.seeded_functions import SeededFunctions, may_draw
from .private_steps import private_recipe
from .time_limit import UNLIMITED, Limit

__all__ = ["evaluate_client", "train_client"]


def train_client(
    context: TrainingContext,
    weights: Weights,
    instruction: Instruction,
    client: int,
    limit: Limit = UNLIMITED,
    between: Callable[[nn.Module], None] | None = None,
    optimizer_of: Callable[[OptimizerConfig, list[nn.Parameter]], Optimizer] = build_optimizer,
) -> Stack:
    """Train `client` from the global `weights` and return a stack of one.

    It begins with a module as built, and with the process-wide generators seeded by run, round
    and client. `between` is called with the module before each step and after the last.
    `optimizer_of` makes the optimizer of its parameters.
    """
    model = context.fresh_model(weights, instruction.states, client)
    names = model.state_dict().keys()
    # With other noise, examples are drawn anew, too: that is what their account composes.
    stream = () if instruction.noise is None else (instruction.noise.stamp,)
    plan = context.plan(instruction.server_round, [client], limit.max_steps, stream)
    train, row_weights = context.train, context.row_weights(plan).tolist()

    def batches() -> Iterator[TrainingBatch]:
        for (chosen, step_seed), weight in zip(plan.batches(), row_weights, strict=True):
            limit.check()
            if between is not None:
                between(model)
            yield TrainingBatch(train.take(chosen), weight, max(1, weight), step_seed)
        if between is not None:
            between(model)

    drawing = may_draw(model)
    identity = int(context.population.partition.identities[client])
    drawn = seed(context.run_seed, "client", instruction.server_round, identity)
    # Threads share the process's generators: those of models that cannot draw are left alone.
    with isolated_rng(drawn) if drawing else nullcontext():
        if train.device.type == "cuda":
            torch.cuda.manual_seed(drawn)
        recipe = Recipe(
            clip_norm=context.optimizer.clip_norm,
            around_forward=_draws_by_step(train.device) if drawing else nullcontext,
            change_gradients=_adding(model, instruction, client),
        )
        if context.record is not None:
            recipe = private_recipe(context, model, instruction, client, recipe)
        totals = train_batches(
            model,
            optimizer_of(instruction.optimizer(context.optimizer), list(model.parameters())),
            context.task,
            batches(),
            penalty_of(model, context.loss),
            recipe,
        )
    _check_names(model, names)
    sent, state = context.personal.finish(model.state_dict())
    return Stack(
        clients=(client,),
        arrays={name: torch.stack([value]) for name, value in sent.items()},
        weights=context.weights_of([client]),
        loss_sums=(totals.loss_sum,),
        seen=plan.seen,
        weights_seen=context.weights_seen(plan),
        steps=plan.steps,
        states={name: torch.stack([value]) for name, value in state.items()},
    )


def _draws_by_step(
    device: torch.device,
) -> Callable[[TrainingBatch], AbstractContextManager[object]]:
    """Return the context of a step in which functions draw from its seed, such as dropout."""
    return lambda batch: SeededFunctions(batch.seed, device)


def _check_names(model: nn.Module, names: Collection[str]) -> None:
    """Raise `ValueError` if training has given the module other weights."""
    differing = sorted(model.state_dict().keys() ^ set(names))
    if differing:
        raise ValueError(
            f"training adds or removes {differing[0]}, which the other clients do not have: "
            "register it where the module is made"
        )


def _adding(model: nn.Module, instruction: Instruction, client: int) -> Callable[[], None] | None:
    """Return what adds the algorithms' terms to a client's gradients, if there are any."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    term = gradient_term(instruction.algorithms, start, instruction.states_of(client))
    if term is None:
        return None

    def add() -> None:
        with torch.no_grad():
            for name, p in trained.items():
                added = term(name, p)
                gradient = torch.zeros_like(p) if p.grad is None else p.grad
                p.grad = added + gradient

    return add


def evaluate_client(
    context: TrainingContext, model: nn.Module, client: int, limit: Limit = UNLIMITED
) -> Metrics:
    """Return the metrics of `model` on the client's held-out examples, by themselves.

    `model` is as it was built but for its weights. Process-wide generators are seeded by client.
    """
    size, total = context.evaluation_batch_size, context.task.metrics.zero()
    identity = int(context.population.partition.identities[client])
    with isolated_rng(seed(context.run_seed, "evaluation", identity)):
        held = torch.from_numpy(context.population.holdout_indices(client))
        for batch in [held] if context.task.joint else torch.split(held, size):
            limit.check()
            total = total + evaluate(model, context.task, context.train, size, batch)
    return total
