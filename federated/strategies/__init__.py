"""Server strategies by name: those of the papers, and Flower's own classes as `flower_NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flwr.serverapp.strategy as flower
from flwr.serverapp.strategy import Strategy

from heliotrope import plugin_loading, registry
from heliotrope.config import Run
from heliotrope.config.federated import FederatedConfig
from heliotrope.config.groups import StrategyConfig
from heliotrope.errors import ConfigError, HeliotropeError
from heliotrope.registry import Entry

from ..attacks.kinds import Collusion
from ..attacks.names import attack_of
from ..flower.messages import summed_evaluations
from .buffers import ParametersOnly
from .conditions import check_strategy
from .facts import ModelFacts
from .mean import MeanStrategy
from .qfedavg import QFedAvg
from .robust import Bucketing, RobustStrategy
from .scaffold import check_scaffold

__all__ = ["ModelFacts", "adds_evaluations", "build_strategy", "reduces"]

# Every client that the grid offers is asked: a cohort is drawn outside of the strategy.
_TAKES_ALL: dict[str, Any] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
    "evaluate_metrics_aggr_fn": summed_evaluations,
}
# Of Flower's own, those for which the mean of all updates is as good as each of them.
_OF_MEANS = (
    *(flower.FedAvg, flower.FedProx, flower.FedAvgM),
    *(flower.FedAdam, flower.FedYogi, flower.FedAdagrad),
)


def build_strategy(run: Run, facts: ModelFacts) -> Strategy:
    """Return the strategy of the config, set to take every client that the grid offers.

    Raises `ConfigError` if a cohort is too small for it, or has more attackers than it bounds.
    """
    check_strategy(run.federated, facts.clients)
    cfg = run.federated.strategy
    if cfg.name == "scaffold":
        check_scaffold(run)
    entry = registry.entry("strategy", cfg.name)
    given = {"facts": facts, "client_learning_rate": run.optimizer.lr}
    strategy: Strategy = (
        entry.build(vars(cfg), **given) if entry.built_in else _of_plug_in(entry, cfg, given)
    )
    for name, value in _TAKES_ALL.items():
        if hasattr(strategy, name):
            setattr(strategy, name, value)
    if isinstance(strategy, RobustStrategy):
        strategy.bucketing = Bucketing(run.federated.bucket_size, run.seed)
    elif run.federated.bucket_size > 1:
        raise ConfigError(
            f"federated.bucket_size={run.federated.bucket_size} makes means for a robust rule to "
            f"combine, which federated/strategy={cfg.name} is not. Set federated.bucket_size=1, or "
            "federated/strategy=geometric_median or another of ours."
        )
    ours = isinstance(strategy, MeanStrategy | RobustStrategy)
    return ParametersOnly(strategy, facts) if facts.buffers and not ours else strategy


def _of_plug_in(entry: Entry, cfg: StrategyConfig, given: Mapping[str, Any]) -> Strategy:
    what = f"federated/strategy={entry.name} ({entry.where})"
    try:
        strategy = entry.build(vars(cfg), **given)
    except HeliotropeError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} cannot be built: {plugin_loading.raised(error)}") from error
    if not isinstance(strategy, Strategy):
        kind = type(strategy)
        raise ConfigError(
            f"{what} gave a {kind.__module__}.{kind.__name__}. Return a strategy of Flower's "
            "message interface: a class of flwr.serverapp.strategy.Strategy."
        )
    if isinstance(strategy, flower.FedAvg) and not hasattr(strategy, "fraction_train"):
        raise ConfigError(
            f"{what} has an __init__ that leaves out that of {_of_flower(strategy)}. Begin it with "
            "super().__init__()."
        )
    return strategy


def _of_flower(strategy: Strategy) -> str:
    """Return the name of the class of Flower's that a strategy is built on."""
    named = (base.__name__ for base in type(strategy).__mro__ if base.__module__[:5] == "flwr.")
    return next(named)


def reduces(cfg: FederatedConfig, strategy: Strategy) -> bool:
    """Return whether workers send one sum each; `ConfigError` if that was forced wrongly."""
    inner = strategy.inner if isinstance(strategy, ParametersOnly) else strategy
    ours = isinstance(inner, MeanStrategy) and not isinstance(inner, QFedAvg)
    able = ours or type(inner) in _OF_MEANS or getattr(inner, "mean_is_enough", False) is True
    if cfg.reduce == "worker" and not able:
        theirs = not registry.entry("strategy", cfg.strategy.name).built_in
        raise ConfigError(
            f"federated.reduce=worker, but federated/strategy={cfg.strategy.name} needs every "
            "client's update. Set federated.reduce=none or auto"
            f"{', or mean_is_enough = True in the class' if theirs else ''}."
        )
    attack = attack_of(cfg)
    if isinstance(attack, Collusion):
        if cfg.reduce == "worker":
            raise ConfigError(
                f"federated.reduce=worker adds updates up where clients are trained, but attackers "
                f"of federated/attack={attack.name} know each of them. Set federated.reduce=none "
                "or auto."
            )
        return False
    return able and cfg.reduce != "none"


def adds_evaluations(strategy: Strategy) -> bool:
    """Tell whether every client that is offered is evaluated, and their sums are added.

    Flower's `FedAvg` does that, as it is set here; a strategy with methods of its own may not.
    """
    return all(
        getattr(type(strategy), name) is getattr(flower.FedAvg, name)
        for name in ("configure_evaluate", "aggregate_evaluate")
    )
