"""How many clients federated evaluation asks, and how often each one's numbers are written."""

from __future__ import annotations

from heliotrope.config.federated import FederatedConfig
from heliotrope.errors import ConfigError

from ..fractions import fraction_rounded_down

__all__ = ["clients_to_evaluate", "rows_due"]


def clients_to_evaluate(cfg: FederatedConfig, holding: int) -> int:
    """Return how many of the `holding` clients that hold out examples an evaluation asks.

    Raises `ConfigError` if that is more than there are.
    """
    if cfg.evaluate_fraction is not None:
        return max(1, fraction_rounded_down(cfg.evaluate_fraction, holding))
    if cfg.evaluate_clients is None:
        return holding
    if cfg.evaluate_clients > holding:
        raise ConfigError(
            f"federated.evaluate_clients={cfg.evaluate_clients} is more than the {holding} clients "
            f"that hold out examples with federated.holdout_fraction={cfg.holdout_fraction:g}. "
            f"Set federated.evaluate_clients to at most {holding}, or null for all."
        )
    return cfg.evaluate_clients


def rows_due(cfg: FederatedConfig, server_round: int) -> bool:
    """Whether the rows of single clients are written after this round, if it is evaluated."""
    return server_round == cfg.rounds or server_round % (cfg.client_rows_every or 1) == 0
