"""Which way of training clients is taken: by a rule, so that a command repeats its digits.

The rule knows the configuration, the number of threads, and what a client's step costs, counted
and not timed. `heliotrope tune` times the ways, and prints what to set where the rule is not the
best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..algorithms import ClientAlgorithm
from .context import TrainingContext
from .layers.seeded_functions import may_draw
from .time_limit import Watch
from .verdict import FAST, Verdict, examine

__all__ = [
    "Decision",
    "ExecutionPlan",
    "decide",
    "execution_plan",
    "may_have_lanes",
    "most_stacked",
]

# Multiplications of a client's step. Measured on two idle cores with AVX-512, by `heliotrope tune`:
# a stack saves overhead, which is lost in a step of this length; and from so many in a step on,
# two threads take less time than one.
_HEAVY = 100_000_000
_WORTH_THREADS = 2_000_000
_STACK = 128  # clients trained together; beyond, nothing gets faster
_STACK_BYTES = 1 << 28  # of weights, gradients, optimizer's state and activations of a stack
_DEVIATIONS = 5  # of a Poisson cohort's size, beyond which it is trained in two stacks
_MOST_LANES = 4096  # beyond what any machine has CPUs for


@dataclass(frozen=True)
class ExecutionPlan:
    """How each worker trains its clients.

    Parameters
    ----------
    kind
        `sequential`, `captured` or `batched`.
    threads
        Of each lane.
    stack
        Clients trained in one step.
    lanes
        Clients trained side by side, each in steps of its own.
    """

    kind: str
    threads: int
    stack: int = 1
    lanes: int = 1

    def __post_init__(self) -> None:
        """Raise `ValueError` for what no rule gives; a checkpoint's plan is read from JSON."""
        sizes = (self.threads, self.stack, self.lanes)
        if self.kind not in ("sequential", "captured", "batched"):
            raise ValueError(f"{self.kind!r} is no way of training clients")
        if not all(type(size) is int and size >= 1 for size in sizes) or self.lanes > _MOST_LANES:
            raise ValueError(f"{sizes} are no threads, clients of a stack and lanes")

    def __str__(self) -> str:
        stacks = f" in stacks of {self.stack}" if self.kind == "batched" else ""
        lanes = f" in {self.lanes} lanes" if self.lanes > 1 else ""
        return f"{self.kind}{stacks}{lanes} with {self.threads} thread(s)"


@dataclass(frozen=True)
class Decision:
    """An execution plan, and why some ways were not open; none if the one asked for is not."""

    execution: ExecutionPlan | None
    reasons: dict[str, str]

    def line(self) -> str:
        """Return what a user is told."""
        text = f"client training: {self.execution}"
        if self.execution is not None and self.execution.kind == "sequential" and self.reasons:
            alike = len(set(self.reasons.values())) == 1
            reasons = [r if alike else f"not {k}: {r}" for k, r in self.reasons.items()]
            text += f", since {'; '.join(dict.fromkeys(reasons))}"
        return text


def decide(
    context: TrainingContext,
    cohort: int,
    threads: int,
    algorithms: tuple[ClientAlgorithm, ...],
    watch: Watch,
) -> Decision:
    """Return how `cohort` clients a round are trained by a worker with `threads` CPUs."""
    cfg = context.federated
    asked = cfg.client_training
    kinds = FAST if asked == "auto" else tuple({asked} & set(FAST))
    verdict = examine(context, algorithms, watch, kinds, _HEAVY)
    reasons = dict(verdict.reasons)
    if asked in reasons:
        return Decision(None, {asked: reasons[asked]})
    if asked != "auto":
        return Decision(execution_plan(asked, context, cohort, threads, verdict), {})
    preferred = ("captured", "batched") if _is_heavy(context, verdict) else ("batched", "captured")
    kind = next((kind for kind in preferred if kind not in reasons), "sequential")
    return Decision(execution_plan(kind, context, cohort, threads, verdict), reasons)


def execution_plan(
    kind: str, context: TrainingContext, cohort: int, threads: int, verdict: Verdict
) -> ExecutionPlan:
    """Return the threads, the stack and the lanes of one kind of client training."""
    cfg = context.federated
    work = _work(context, verdict)
    if kind == "batched":
        stack = cfg.stack_size or min(_STACK, most_stacked(context, verdict))
        stack = max(1, min(stack, _largest_cohort(context, cohort)))
        return ExecutionPlan(kind, _threads(context, threads, min(stack, cohort) * work), stack)
    lanes = 1
    if may_have_lanes(kind, context, verdict):
        lanes = cfg.lanes or (threads if work >= _WORTH_THREADS else 1)
        lanes = max(1, min(lanes, cohort))
    if lanes > 1:
        return ExecutionPlan(kind, max(1, threads // lanes), lanes=lanes)
    return ExecutionPlan(kind, _threads(context, threads, work))


def may_have_lanes(kind: str, context: TrainingContext, verdict: Verdict) -> bool:
    """Return whether clients can train side by side in one process.

    Only the main thread can be cut off, and all threads share the generators of the process:
    what is trained sequentially may come to draw from them after the trial's steps.
    """
    timed = context.federated.client_timeout is not None
    drawing = verdict.draws or (kind == "sequential" and may_draw(context.model))
    private = context.record is not None  # its kernels are chosen for all threads of a process
    return not (timed or drawing or private or context.train.device.type == "cuda")


def most_stacked(context: TrainingContext, verdict: Verdict) -> int:
    """Return how many clients fit into the memory that a stack may take."""
    weights = sum(p.nbytes for p in context.model.parameters())
    each = 5 * weights + (verdict.activation_bytes or 0)  # trained, final, gradient, two slots
    return int(max(1, _STACK_BYTES // each))


def _largest_cohort(context: TrainingContext, cohort: int) -> int:
    """Return the clients that a round may well have: of Poisson sampling, `cohort` are expected.

    A few clients in a second stack would take as many steps as the first.
    """
    if getattr(context.federated.privacy, "sampling", None) != "poisson":
        return cohort
    return min(len(context.population), cohort + math.ceil(_DEVIATIONS * math.sqrt(cohort)))


def _threads(context: TrainingContext, threads: int, work: int) -> int:
    """Return the threads of one lane: tiny kernels run slower on more than one."""
    fixed = context.federated.cpus_per_worker is not None
    return threads if fixed or work >= _WORTH_THREADS else 1


def _is_heavy(context: TrainingContext, verdict: Verdict) -> bool:
    return context.train.device.type != "cuda" and _work(context, verdict) >= _HEAVY


def _work(context: TrainingContext, verdict: Verdict) -> int:
    """Return the multiplications of a client's step, as if of dense layers if they are unknown."""
    if verdict.work is not None:
        return verdict.work
    batch = context.federated.batch_size or int(context.population.partition.sizes.mean())
    return 3 * batch * sum(p.numel() for p in context.model.parameters())
