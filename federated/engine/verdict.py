"""Whether the fast ways of training a client give what the sequential reference gives.

Two made-up clients with examples of the run are trained for several steps, from the initial
weights and from others, by each way; the lengths of the updates' differences decide. Their batches
differ in size, so that a padded example which enters the others' losses shows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn
from torch.optim import Optimizer

from heliotrope.config import OptimizerConfig
from heliotrope.config.training import LossConfig
from heliotrope.models.hidden import changed, hidden_state, is_shared
from heliotrope.models.pristine import gradient_hooks
from heliotrope.seeding import (
    generator_states,
    same_generator_states,
)
from heliotrope.training.optimizers import build_optimizer

from ..algorithms import ClientAlgorithm
from ..updates import Instruction, Stack, Weights, is_finite
from .capture import NotCapturableError
from .context import TrainingContext
from .double_precision import double, in_double
from .layers.refusal import NotStackableError
from .local_optimizer import WRITTEN_OUT, LocalOptimizer
from .sequential import train_client
from .stacked import FastTrainer
from .time_limit import Limit, Watch, limit_of
from .trial_clients import TRIED, starting_weights, trial_context

__all__ = ["FAST", "Verdict", "examine"]

_log = logging.getLogger(__name__)

FAST = ("captured", "batched")
_TOLERANCE_IN_DOUBLE = 1e-9  # of an update's length
_TOLERANCE = 1e-5  # of an update's length
_ROUNDING = 10.0  # times the reference's own distance between float32 and float64
_PRIVATE = "the gradient of each example is clipped, one client at a time"
_MOST = 1e-3  # beyond it, as in bfloat16, rounding would hide what is wrong


@dataclass(frozen=True)
class Verdict:
    """What a model allows.

    Parameters
    ----------
    reasons
        Why it is not trained in a way, by its name; ways that are not in it may be taken.
    draws
        Whether its steps draw from the process-wide generators, or change something else that all
        modules of its class share, so that only one client can be trained at a time in a process.
    work, activation_bytes
        Of a client's step, as `CapturedStep` has them; None if none could be captured.
    """

    reasons: Mapping[str, str]
    draws: bool = False
    work: int | None = None
    activation_bytes: int | None = None


def examine(
    context: TrainingContext,
    algorithms: tuple[ClientAlgorithm, ...],
    watch: Watch,
    kinds: Sequence[str],
    heavy: float = math.inf,
) -> Verdict:
    """Try `kinds` of client training, in this order, against the sequential one.

    A kind that is right ends the search if a client's step has at least `heavy` multiplications.
    What fails in the reference as well, as by bad data, says nothing about a fast way; but then
    none is known to be right.
    """
    if context.record is not None:
        return Verdict(dict.fromkeys(FAST, _PRIVATE), draws=True)
    trial = _Trial(trial_context(context), algorithms, watch)
    try:
        trial.train_sequentially()
    except Exception as error:  # noqa: BLE001 - whatever a user's module raises
        _log.info("a trial step failed", exc_info=True)
        return Verdict(dict.fromkeys(FAST, f"a trial step failed: {_line(error)}"), draws=True)
    general = trial.general_reason()
    if general is not None:
        return Verdict(dict.fromkeys(FAST, general), trial.draws)
    reasons = {}
    for kind in kinds:
        reason = trial.why_not(kind)
        if trial.rounding_decides:
            # Rounding may decide a lot where a number is at a kink: others are looked at.
            other = _Trial(trial_context(context, draw=1), algorithms, watch)
            other.train_sequentially()
            reason = reason if other.why_not(kind) else None
        if reason is not None:
            reasons[kind] = reason
        elif (trial.trainer.costs() or (0, 0))[0] >= heavy:
            break
    work, activation_bytes = trial.trainer.costs() or (None, None)
    return Verdict(reasons, trial.draws, work, activation_bytes)


class _Trial:
    """The made-up clients, trained in every way."""

    def __init__(
        self, context: TrainingContext, algorithms: tuple[ClientAlgorithm, ...], watch: Watch
    ) -> None:
        self._context = context
        self._instruction = Instruction(0, algorithms)
        self._watch = watch
        self._starts = starting_weights(context)
        self._expected: list[dict[int, Stack]] = []
        self._changing: list[str] = []
        self._drawn = False
        self.rounding_decides = False  # of the kind asked about last: it is right in float64
        self.trainer = FastTrainer(context)

    def train_sequentially(self) -> None:
        """Train by the reference, and note what a step changes besides the weights."""
        self._expected = [self._sequential(self._context, start) for start in self._starts]

    def _sequential(self, context: TrainingContext, start: Weights) -> dict[int, Stack]:
        stacks = {}
        limit = self._limit()
        with self._watch.over(TRIED, limit):
            for client in TRIED:
                watcher = _Watcher()
                stacks[client] = train_client(
                    context, start, self._instruction, client, limit, watcher, _plain
                )
                self._changing += watcher.changing
                self._drawn |= watcher.draws
        return stacks

    def _limit(self) -> Limit:
        return limit_of(self._context.federated.client_timeout, len(TRIED))

    @property
    def draws(self) -> bool:
        """As `Verdict` has it."""
        return self._drawn or any(map(is_shared, self._changing))

    def general_reason(self) -> str | None:
        """Return why no fast way is right for this model, or None."""
        optimizer = self._context.optimizer
        if optimizer.name not in WRITTEN_OUT:
            return f"optimizer={optimizer.name} is torch's own, one client at a time"
        for name, weight in self._context.model.named_parameters():
            if any(gradient_hooks(weight)):
                return f"a hook changes or reads the gradient of {name}"
        if not any(_finite(stack) for stacks in self._expected for stack in stacks.values()):
            return "no trial update is finite, so that none can be compared"
        shared = [name for name in self._changing if is_shared(name)]
        if shared:
            return f"its steps change {shared[0]}, which all clients of a process share"
        if self._changing:
            return f"its steps change {self._changing[0]}, besides its weights"
        if self._drawn:
            return "its steps draw from a process-wide random generator"
        return None

    def why_not(self, kind: str) -> str | None:
        """Return why a fast way is not right for this model, or None."""
        self.rounding_decides = False
        try:
            worst, allowed = self._distance(self._of_kind(kind))
        except (NotCapturableError, NotStackableError) as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - whatever vmap says of a model it cannot map
            _log.info("a %s trial step failed", kind, exc_info=True)
            return _line(error)
        if worst <= allowed:
            return None
        self.rounding_decides = self._agrees_in_double(kind)
        cause = "a step hides something from its recording"
        if self.rounding_decides:
            cause = "they agree in float64 only, so that rounding decides, or hides what is wrong"
        elif kind == "batched":
            cause = "its examples enter one another's losses, or those of other clients"
        return f"its updates are {worst:.0e} of their length from the sequential ones: {cause}"

    def _of_kind(self, kind: str) -> list[dict[int, Stack]]:
        found = []
        for start in self._starts:
            limit = self._limit()
            with self._watch.over(TRIED, limit):
                if kind == "captured":
                    stacks = [
                        self.trainer.train_one(start, self._instruction, client, limit)
                        for client in TRIED
                    ]
                else:
                    stacks = [self.trainer.train_stacked(start, self._instruction, TRIED, limit)]
            rows = {who: (stack, row) for stack in stacks for row, who in enumerate(stack.clients)}
            found.append({who: _row(*rows[who]) for who in TRIED})
        return found

    def _distance(self, found: list[dict[int, Stack]]) -> tuple[float, float]:
        """Return the worst distance from the reference, and how far it may be.

        Both in lengths of the update. The reference is trained in float64 only where rounding
        decides.
        """
        worst, allowed = 0.0, _TOLERANCE
        for start, ours, expected in zip(self._starts, found, self._expected, strict=True):
            for client in TRIED:
                distance = _apart(ours[client], expected[client], start)
                if distance > max(worst, _TOLERANCE):
                    own = _ROUNDING * self._own_distance(start, client, expected)
                    allowed = max(allowed, min(own, _MOST))
                worst = max(worst, distance)
        return worst, allowed

    def _agrees_in_double(self, kind: str) -> bool:
        """Return whether a way gives the reference's updates where both are in float64."""
        try:
            trial = _Trial(in_double(self._context), self._instruction.algorithms, self._watch)
            trial.train_sequentially()
            worst, _ = trial._distance(trial._of_kind(kind))
        except Exception:  # noqa: BLE001 - a user's module may know one precision only
            return False
        return worst <= _TOLERANCE_IN_DOUBLE

    def _own_distance(self, start: Weights, client: int, expected: dict[int, Stack]) -> float:
        """Return the reference's distance between its own precision and float64."""
        try:
            exact = in_double(self._context)
            trained = self._sequential(exact, {name: double(v) for name, v in start.items()})
        except Exception:  # noqa: BLE001 - a user's module may know one precision only
            return 0.0
        return _apart(expected[client], trained[client], start)


class _PlainOptimizer:
    """The updates of the fast ways for one client: torch.optim takes a second to be imported.

    What is compared is gradients; `LocalOptimizer` is held to torch.optim by tests.
    """

    def __init__(self, cfg: OptimizerConfig, weights: list[nn.Parameter]) -> None:
        # The loop that it steps in clips gradients, and adds the penalties and terms to them.
        bare = replace(cfg, clip_norm=None)
        self._weights = weights
        values = [weight.detach() for weight in weights]
        self._optimizer = LocalOptimizer(bare, LossConfig(), values)

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002 - always so
        """Forget the gradients."""
        for weight in self._weights:
            weight.grad = None

    def step(self) -> None:
        """Update the weights by their gradients."""
        with torch.no_grad():
            values = [weight.detach() for weight in self._weights]
            self._optimizer.step(values, [weight.grad for weight in self._weights])


def _plain(cfg: OptimizerConfig, weights: list[nn.Parameter]) -> Optimizer:
    """Return the optimizer of a trial; of another kind, torch's own."""
    if cfg.name not in WRITTEN_OUT:
        return build_optimizer(cfg, weights)
    return cast(Optimizer, _PlainOptimizer(cfg, weights))


class _Watcher:
    """Looks at a module between its steps, at what changes in each besides the weights."""

    def __init__(self) -> None:
        self._before: Mapping[str, object] | None = None
        self._steps = 0
        self._drawn = generator_states()
        self.changing: list[str] = []
        self.draws = False

    def __call__(self, model: nn.Module) -> None:
        state, drawn = hidden_state(model), generator_states()
        # The first step may fill a cache; what the next ones change again is state.
        if self._before is not None and self._steps > 1:
            self.changing += changed(self._before, state)
        if self._steps > 0:
            self.draws |= not same_generator_states(self._drawn, drawn)
        self._before, self._drawn, self._steps = state, drawn, self._steps + 1


def _row(stack: Stack, row: int) -> Stack:
    """Return one client's part of a stack, as a stack of one."""
    return stack.without([other for other in range(len(stack.clients)) if other != row])


def _finite(stack: Stack) -> bool:
    return all(map(is_finite, stack.arrays.values()))


def _apart(ours: Stack, theirs: Stack, start: Weights) -> float:
    """Return how far two updates are apart, in lengths of the second one.

    Where one is not finite, the other is not either, or they are infinitely far apart.
    """
    difference = length = 0.0
    found = {**ours.arrays, **ours.states}
    for name, expected in (*theirs.arrays.items(), *theirs.states.items()):
        if not expected.is_floating_point():
            if not torch.equal(found[name].to(expected), expected):
                return float("inf")
            continue
        a, b = found[name][0].double(), expected[0].double()
        finite = torch.isfinite(a)
        if not torch.equal(finite, torch.isfinite(b)):
            return float("inf")
        difference += float((a - b)[finite].square().sum())
        length += float((b - start[name].double())[finite].square().sum())
    if length == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return float((difference / length) ** 0.5)


def _line(error: Exception) -> str:
    """Return what an error says, in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
