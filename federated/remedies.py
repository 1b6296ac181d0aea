"""What to do about a federated run that cannot go on: it follows from what has failed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from heliotrope.config import Run
from heliotrope.errors import HeliotropeError, RunFailedError
from heliotrope.plugin_loading import raised
from heliotrope.runs.changed_plugins import going_on

from .flower.messages import read_arrays
from .updates import Failure

__all__ = ["naming", "of_divergence", "of_failure", "of_other_weights"]

_log = logging.getLogger(__name__)

_LARGE = 1e6  # of a weight: no client trains from there


def of_failure(run: Run, directory: Path, failure: Failure, before: ArrayRecord) -> str:
    """Return what to do about a round that no client of came through, such as the one given.

    `before` is the model that the clients began from, `directory` the run's.
    """
    go_on = going_on(run, directory, failure.reason)
    if failure.kind == "diverged":
        return f"They diverged. Start again: {of_divergence(run, before)}"
    if failure.kind == "late":
        return f"Raise federated.client_timeout={run.federated.client_timeout:g}: {go_on}."
    return f"Mend what raises that, see run.log, and go on: {go_on}."


def of_other_weights(before: ArrayRecord, after: ArrayRecord) -> str | None:
    """Return how the weights `after` a strategy are not those of the model `before`; None if so."""
    if differing := sorted(before.keys() ^ after.keys()):
        does = "adds" if differing[0] in after else "leaves out"
        return f"{does} {differing[0]}. Return all weights that were sent, and no others."
    for name, array in before.items():
        old, new = tuple(array.shape), tuple(after[name].shape)
        if old != new and {old, new} != {(), (1,)}:  # torch takes these for one another
            return f"gave {name} {list(new)}, which is {list(old)}. Return it in that shape."
    return None


def of_divergence(run: Run, before: ArrayRecord, *, updates_finite: bool = False) -> str:
    """Return what to lower, such as a learning rate; `before` is what the clients began from.

    Weights beyond reason there are the server's doing, whose rate the strategy may have; and so
    is a new model that is not finite, where the clients' updates are.
    """
    attack, strategy = run.federated.attack.name, run.federated.strategy
    if attack != "none":
        return (
            f"federated/attack={attack} may have led there: set federated/strategy to a robust "
            f"rule other than {strategy.name}, such as geometric_median, or federated/attack=none."
        )
    privacy: Any = run.federated.privacy  # with the keys of its choice
    if privacy.name != "none":
        return (
            f"The noise of federated/privacy={privacy.name} may have led there: lower "
            f"federated.privacy.clip={privacy.clip:g}, which noise is in proportion to, or take "
            f"more clients a round; or lower optimizer.lr={run.optimizer.lr:g}."
        )
    names = ("eta", "server_learning_rate")
    rates = [(f"federated.strategy.{name}", getattr(strategy, name, None)) for name in names]
    server = next((f"{key}={rate:g}" for key, rate in rates if rate is not None), None)
    clients = f"optimizer.lr={run.optimizer.lr:g}"
    if server is None:
        return f"Lower {clients}."
    if updates_finite:
        return f"Lower {server}."
    values = read_arrays(before).values()
    largest = max((float(value.abs().max()) for value in values if value.numel()), default=0.0)
    if not largest < _LARGE:
        return f"The server's steps have led to weights of {largest:.2g}: lower {server}."
    return f"Lower {clients}, or the server's {server}."


@contextmanager
def naming(run: Run, directory: Path, what: str) -> Iterator[None]:
    """Raise a `RunFailedError` that says `what` raised an error in the block, and in which line."""
    try:
        yield
    except HeliotropeError:
        raise
    except Exception as error:
        _log.exception("%s failed", what)
        reason = raised(error, "")
        go_on = going_on(run, directory, reason)
        raise RunFailedError(
            f"{what} raised {reason}. Mend it, see run.log, and go on: {go_on}."
        ) from error
