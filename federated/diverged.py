"""What to lower when a federated run has diverged: the clients' steps, or the server's."""

from __future__ import annotations

from flwr.app import ArrayRecord

from heliotrope.config import Run

from .flower.messages import read_arrays

__all__ = ["remedy"]

_LARGE = 1e6  # of a weight: no client trains from there


def remedy(run: Run, before: ArrayRecord, *, updates_finite: bool = False) -> str:
    """Return which learning rate to lower; `before` is the model that the clients began from.

    Weights beyond reason there are the server's doing, whose rate the strategy may have; and so
    is a new model that is not finite, where the clients' updates are.
    """
    strategy = run.federated.strategy
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
