"""Whether a round is good: enough clients succeeded, and the strategy gave a usable model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flwr.app import ArrayRecord

from heliotrope.config import Run
from heliotrope.errors import QuorumError, RunFailedError
from heliotrope.shell import typed

from .flower.messages import read_arrays
from .fractions import fraction_rounded_up
from .remedies import of_divergence, of_failure, of_other_weights
from .updates import Failure, is_finite

__all__ = ["check_quorum", "checked_model"]


def check_quorum(
    run: Run,
    directory: Path,
    server_round: int,
    failures: Sequence[Failure],
    succeeded: int,
    drawn: int,
    arrays: ArrayRecord,
) -> None:
    """Raise `QuorumError` if fewer of the `drawn` clients succeeded than `federated.quorum` asks.

    `arrays` are the global weights of the round, and `directory` is the run's.
    """
    quorum = run.federated.quorum
    needed = max(1, fraction_rounded_up(quorum, drawn))
    if succeeded >= needed:
        return
    names = ", ".join(str(failure.client) for failure in failures[:8])
    remedy = (
        "Lower federated.quorum to go on without them, with resume=true "
        f"{typed('hydra.run.dir', directory)}."
        if succeeded
        else of_failure(run, directory, failures[0], arrays)
    )
    raise QuorumError(
        f"round {server_round}: {succeeded} of {drawn} clients succeeded, "
        f"federated.quorum={quorum:g} asks for {needed}. Failed: client {names}"
        f"{', ...' if len(failures) > 8 else ''} ({failures[0].reason}). {remedy}"
    )


def checked_model(
    run: Run, server_round: int, before: ArrayRecord, arrays: ArrayRecord | None, updates: int
) -> ArrayRecord:
    """Return what the strategy made of `updates` updates and the global weights `before`.

    Raises `RunFailedError` if it is no model, of other weights, or not finite.
    """
    name = run.federated.strategy.name
    if arrays is None:
        raise RunFailedError(
            f"round {server_round}: strategy {name} gave no model from {updates} updates; the "
            "run's log has its reason."
        )
    if (why := of_other_weights(before, arrays)) is not None:
        raise RunFailedError(f"round {server_round}: strategy {name} {why}")
    for key, value in read_arrays(arrays).items():
        if not is_finite(value):
            raise RunFailedError(
                f"round {server_round}: strategy {name} made {key} NaN or infinite. "
                f"{of_divergence(run, before, updates_finite=True)}"
            )
    return arrays
