"""Server strategies: Flower's own, unmodified, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from heliotrope.config import Run
from heliotrope.config_federated import (
    FederatedConfig,
    KrumConfig,
    MultiKrumConfig,
    TrimmedConfig,
)
from heliotrope.errors import ConfigError

from ..messages import summed_evaluations

__all__ = ["STRATEGIES", "build_strategy", "reduces", "strategy_settings"]


@dataclass(frozen=True)
class _Entry:
    """A strategy's class, and whether a weighted mean of the updates is all it needs."""

    kind: Callable[..., Strategy]
    needs_only_mean: bool


STRATEGIES: dict[str, _Entry] = {
    "fedavg": _Entry(FedAvg, True),
    "fedprox": _Entry(FedProx, True),
    "fedadam": _Entry(FedAdam, True),
    "fedyogi": _Entry(FedYogi, True),
    "fedadagrad": _Entry(FedAdagrad, True),
    "fedavgm": _Entry(FedAvgM, True),
    "fedmedian": _Entry(FedMedian, False),
    "fedtrimmedavg": _Entry(FedTrimmedAvg, False),
    "krum": _Entry(Krum, False),
    "multikrum": _Entry(MultiKrum, False),
    "bulyan": _Entry(Bulyan, False),
    "qfedavg": _Entry(QFedAvg, False),
}


def build_strategy(run: Run) -> Strategy:
    """Return the strategy of the config, set to take every client that the grid offers.

    Raises `ConfigError` if a cohort is too small for it.
    """
    _check(run.federated)
    return STRATEGIES[run.federated.strategy.name].kind(
        **strategy_settings(run),
        fraction_train=1.0,
        fraction_evaluate=1.0,
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=1,
        evaluate_metrics_aggr_fn=summed_evaluations,
    )


def strategy_settings(run: Run) -> dict[str, Any]:
    """Return the strategy's own constructor arguments."""
    settings = asdict(run.federated.strategy)
    if settings.pop("name") == "qfedavg":
        settings["client_learning_rate"] = run.optimizer.lr
    return settings


def reduces(cfg: FederatedConfig) -> bool:
    """Return whether workers send one mean each; `ConfigError` if that was forced wrongly."""
    able = STRATEGIES[cfg.strategy.name].needs_only_mean
    if cfg.reduce == "worker" and not able:
        raise ConfigError(
            f"federated.reduce=worker, but federated/strategy={cfg.strategy.name} needs every "
            "client's update. Set federated.reduce=none or auto."
        )
    return able and cfg.reduce != "none"


def _check(cfg: FederatedConfig) -> None:
    strategy, cohort = cfg.strategy, cfg.clients_per_round
    key = "federated.strategy"
    if isinstance(strategy, TrimmedConfig) and not 0 <= strategy.beta < 0.5:
        raise ConfigError(f"{key}.beta={strategy.beta} must lie in [0, 0.5).")
    if not isinstance(strategy, KrumConfig):
        return
    bad = strategy.num_malicious_nodes
    needed = 4 * bad + 3 if strategy.name == "bulyan" else 2 * bad + 3
    if bad < 0 or cohort < needed:
        raise ConfigError(
            f"federated/strategy={strategy.name} with {key}.num_malicious_nodes={bad} needs at "
            f"least {needed} clients a round, but federated.clients_per_round={cohort}. Raise "
            "the one or lower the other."
        )
    if isinstance(strategy, MultiKrumConfig) and not 1 <= strategy.num_nodes_to_select <= cohort:
        raise ConfigError(
            f"{key}.num_nodes_to_select={strategy.num_nodes_to_select} must lie between 1 and "
            f"federated.clients_per_round={cohort}."
        )
