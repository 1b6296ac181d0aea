"""Which way of training clients is the fastest here: measured, in the first round."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from heliotrope.config import FederatedConfig
from heliotrope.errors import ConfigError

from .batched import FastTrainer, why_not_batched
from .capture import NotCapturableError
from .client import Clients, Instruction

__all__ = ["Choice", "candidates", "check_kind", "fastest"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """How each worker trains its clients: the kind, and with how many threads."""

    kind: str
    threads: int


def check_kind(clients: Clients) -> None:
    """Refuse, before any work, a kind of client training that this model does not allow."""
    kind = clients.federated.client_training
    reason = None
    if kind == "batched":
        reason = why_not_batched(clients.model)
    elif kind == "compiled":
        reason = _why_not_compiled(clients)
    if reason is not None:
        raise ConfigError(
            f"federated.client_training={kind} is not possible: {reason}. "
            "Set federated.client_training=sequential or auto."
        )


def _why_not_compiled(clients: Clients) -> str | None:
    try:
        weights = dict(clients.model.state_dict())
        FastTrainer(clients).train_one(weights, Instruction(1), 0, max_steps=1)
    except NotCapturableError as error:
        return str(error)
    return None


def candidates(cfg: FederatedConfig, clients: Clients, threads: int) -> list[Choice]:
    """Return the choices that the config leaves open, the safest bet first.

    `threads` is a worker's share of CPUs. Tiny kernels run slower on more threads than one.
    """
    if cfg.client_training != "auto":
        kinds = [cfg.client_training]
    else:
        reason = _why_not_compiled(clients)
        if reason is not None:
            _log.info("client training cannot be compiled: %s", reason)
        kinds = ["compiled" if reason is None else "sequential"]
        reason = why_not_batched(clients.model)
        if reason is None:
            kinds.append("batched")
        else:
            _log.info("client training cannot be batched: %s", reason)
    counts = [threads] if cfg.cpus_per_worker is not None else sorted({1, threads})
    return [Choice(kind, count) for kind in kinds for count in counts]


def fastest(choices: Sequence[Choice], work: Callable[[Choice], Iterator[object]]) -> Choice:
    """Return the choice whose `work` is done first; the first of the list wins near ties.

    A later one must be faster by a tenth: the choice should not hang on noise. The best of
    three counts, for first runs capture steps and load libraries.
    """
    if len(choices) == 1:
        return choices[0]
    seconds = {choice: min(_timed(choice, work) for _ in range(3)) for choice in choices}
    first = choices[0]
    best = min(choices, key=lambda choice: seconds[choice] * (1.0 if choice == first else 1.1))
    measured = ", ".join(
        f"{choice.kind} with {choice.threads} thread(s) {value * 1e3:.1f} ms"
        for choice, value in seconds.items()
    )
    _log.info(
        "client training: %s with %d thread(s) (measured: %s)", best.kind, best.threads, measured
    )
    return best


def _timed(choice: Choice, work: Callable[[Choice], Iterator[object]]) -> float:
    torch.set_num_threads(choice.threads)
    started = time.perf_counter()
    for _ in work(choice):
        pass
    return time.perf_counter() - started
