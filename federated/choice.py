"""Which way of training clients is the fastest here: measured, in the first round."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heliotrope.config import AdamConfig, SgdConfig
from heliotrope.errors import ConfigError

from .batched import FastTrainer, why_not_fast
from .capture import NotCapturableError
from .client import Clients, Instruction, set_weights, train_client
from .time_limit import Watch, limit_of

__all__ = ["Choice", "candidates", "check_kind", "fastest"]

_log = logging.getLogger(__name__)


_STACKS = (16, 64, 256)  # clients trained together; beyond, nothing gets faster
_STACK_BYTES = 1 << 27  # of the weights of a stack
_LONG_STEP = 3e-3  # seconds: stacking saves overhead, which is lost in a longer step


@dataclass(frozen=True)
class Choice:
    """How each worker trains its clients.

    Parameters
    ----------
    kind
        `sequential`, `compiled` or `batched`.
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

    def __str__(self) -> str:
        stacks = f" in stacks of {self.stack}" if self.kind == "batched" else ""
        lanes = f" in {self.lanes} lanes" if self.lanes > 1 else ""
        return f"{self.kind}{stacks}{lanes} with {self.threads} thread(s)"


def check_kind(clients: Clients) -> None:
    """Refuse, before any work, a kind of client training that this model does not allow."""
    kind = clients.federated.client_training
    reason = None
    if kind in ("compiled", "batched"):
        reason = _why_not(kind, clients, range(len(clients.population)), Watch())
    if reason is not None:
        raise ConfigError(
            f"federated.client_training={kind} is not possible: {reason}. "
            "Set federated.client_training=sequential or auto."
        )


def _why_not(kind: str, clients: Clients, cohort: Sequence[int], watch: Watch) -> str | None:
    """Return why clients cannot be trained by this kind, or None if they can.

    A step of the first few is tried. One that fails for another reason, as by bad data, says
    nothing: the round will name it.
    """
    if not isinstance(clients.optimizer, SgdConfig | AdamConfig):
        return f"optimizer={clients.optimizer.name} is torch's own, one client at a time"
    reason = why_not_fast(clients.model)
    if reason is not None:
        return reason
    trainer, order = FastTrainer(clients), Instruction(1)
    weights = {name: value.clone() for name, value in clients.model.state_dict().items()}
    limit = limit_of(clients.federated.client_timeout, max_steps=1)
    tried = cohort[:1] if kind == "compiled" else cohort[:2]
    try:
        with watch.over(tried, limit):
            if kind == "compiled":
                trainer.train_one(weights, order, tried[0], limit)
            else:
                trainer.train_stacked(weights, order, tried, limit)
    except NotCapturableError as error:
        return str(error)
    except TimeoutError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever vmap says of a model it cannot map
        try:
            train_client(clients, weights, order, cohort[0], limit)
        except Exception:  # noqa: BLE001 - it is the client, then
            return None
        finally:
            set_weights(clients.model, weights)
        return f"{type(error).__name__}: {error}"
    return None


def candidates(clients: Clients, cohort: Sequence[int], threads: int, watch: Watch) -> list[Choice]:
    """Return the choices that the config leaves open for a cohort, the safest bet first.

    `threads` is a worker's share of CPUs. Tiny kernels run slower on more threads than one;
    large ones share the threads less well than clients side by side do.
    """
    cfg = clients.federated
    kinds = [cfg.client_training]
    if cfg.client_training == "auto":
        reasons = {kind: _why_not(kind, clients, cohort, watch) for kind in ("compiled", "batched")}
        for kind, reason in reasons.items():
            if reason is not None:
                _log.info("client training cannot be %s: %s", kind, reason)
        kinds = [kind for kind, reason in reasons.items() if reason is None]
        if "compiled" not in kinds:
            kinds.insert(0, "sequential")
    counts = [threads] if cfg.cpus_per_worker is not None else sorted({1, threads})
    choices = []
    for kind in kinds:
        stacks = _stacks(clients, len(cohort)) if kind == "batched" else [1]
        choices += [Choice(kind, count, stack) for stack in stacks for count in counts]
        lanes = min(cfg.lanes or threads, len(cohort))
        if kind != "batched" and lanes > 1 and _may_have_lanes(clients):
            if cfg.lanes is not None:
                choices = [choice for choice in choices if choice.kind != kind]
            choices.append(Choice(kind, max(1, threads // lanes), lanes=lanes))
    return choices


def _may_have_lanes(clients: Clients) -> bool:
    """Return whether clients can train side by side: only the main thread can be cut off."""
    return clients.federated.client_timeout is None and not clients.train.inputs.is_cuda


def _stacks(clients: Clients, cohort: int) -> list[int]:
    if clients.federated.stack_size is not None:
        return [min(clients.federated.stack_size, cohort)]
    each = sum(p.nbytes for p in clients.model.parameters())
    most = max(1, min(cohort, _STACK_BYTES // each))
    return sorted({min(stack, most) for stack in _STACKS})


Work = Callable[[Choice, int, int], int]
"""(choice, clients at most, steps of each at most) -> the steps taken of all clients."""


def fastest(choices: Sequence[Choice], work: Work) -> Choice:
    """Return the choice that takes the least time for a client's step.

    A later one must be faster by a tenth: the choice should not hang on noise.
    """
    if len(choices) == 1:
        return choices[0]
    seconds: dict[Choice, float] = {}
    for choice in choices:
        alone = min((s for c, s in seconds.items() if c.kind != "batched"), default=0.0)
        if choice.kind == "batched" and alone > _LONG_STEP:
            _log.info("not tried: %s, since a step alone takes %.1f ms", choice, alone * 1e3)
        else:
            seconds[choice] = _seconds_a_step(choice, work)
    first = choices[0]
    best = min(seconds, key=lambda choice: seconds[choice] * (1.0 if choice == first else 1.1))
    measured = ", ".join(f"{choice} {value * 1e6:.0f} us" for choice, value in seconds.items())
    _log.info("client training: %s (measured a client's step: %s)", best, measured)
    return best


def _seconds_a_step(choice: Choice, work: Work) -> float:
    """Time a few clients and steps; a sample of one client, or one stack, where that is slow."""
    few = max(choice.lanes, choice.stack)
    _timed(work, choice, few, 1)  # captures the step and loads libraries
    seconds = _timed(work, choice, few, 2)
    if seconds * few > 0.1:
        return seconds
    many = few if seconds * few > 0.01 else max(8, few)
    return min(_timed(work, choice, many, 6) for _ in range(3))


def _timed(work: Work, choice: Choice, most: int, max_steps: int) -> float:
    """Return the seconds that the training of some clients takes, a client's step."""
    started = time.perf_counter()
    steps = work(choice, most, max_steps)
    return (time.perf_counter() - started) / max(1, steps)
