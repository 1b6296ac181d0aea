"""Checks of a federated run."""

from __future__ import annotations

from heliotrope import registry
from heliotrope.config.checks.schedule import check_schedule
from heliotrope.config.checks.values import above, at_least, fraction, one_of, within
from heliotrope.config.federated import FederatedConfig
from heliotrope.config.groups import StrategyConfig, keys_of_ours
from heliotrope.config.horizon import horizon_of
from heliotrope.config.run import Run
from heliotrope.config.schedule import schedule_of
from heliotrope.errors import ConfigError

__all__ = ["check_federated"]


def check_federated(run: Run) -> None:
    """Raise `ConfigError` for keys below `federated` that do not go together."""
    cfg = run.federated
    _check_numbers(cfg)
    _check_lanes(cfg)
    _check_client_evaluation(cfg)
    _check_partition(cfg)
    _check_strategy(cfg.strategy)
    check_schedule(schedule_of(cfg), horizon_of(run, "federated"))
    _check_rounds(cfg)


def _check_numbers(cfg: FederatedConfig) -> None:
    one_of("federated.pool", cfg.pool, ("inprocess", "ray"))
    kinds = ("auto", "sequential", "captured", "batched")
    one_of("federated.client_training", cfg.client_training, kinds)
    at_least("federated.cpus_per_worker", cfg.cpus_per_worker, 1)
    at_least("federated.gpus_per_worker", cfg.gpus_per_worker, 0)
    at_least("federated.stack_size", cfg.stack_size, 1)
    above("federated.client_timeout", cfg.client_timeout, 0)
    above("federated.clip_update_norm", cfg.clip_update_norm, 0)
    one_of("federated.reduce", cfg.reduce, ("auto", "worker", "none"))
    for name in (
        "rounds",
        "clients_per_round",
        "local_epochs",
        "batch_size",
        "workers",
        "evaluate_every",
        "checkpoint_every",
        "bucket_size",
    ):
        at_least(f"federated.{name}", getattr(cfg, name), 1)
    fraction("federated.client_momentum", cfg.client_momentum)
    within("federated.quorum", cfg.quorum, 0, 1, open_low=True)
    fraction("federated.holdout_fraction", cfg.holdout_fraction)
    at_least("federated.evaluate_clients", cfg.evaluate_clients, 1)
    at_least("federated.client_rows_every", cfg.client_rows_every, 1)
    if cfg.evaluate_fraction is not None:
        within("federated.evaluate_fraction", cfg.evaluate_fraction, 0, 1, open_low=True)
    if cfg.pool == "inprocess" and cfg.workers != 1:
        raise ConfigError(
            f"federated.workers={cfg.workers} has no effect with federated.pool=inprocess. "
            "Set federated.pool=ray or federated.workers=1."
        )


def _check_client_evaluation(cfg: FederatedConfig) -> None:
    """Raise `ConfigError` for settings of federated evaluation that contradict each other."""
    if cfg.evaluate_clients is not None and cfg.evaluate_fraction is not None:
        raise ConfigError(
            f"federated.evaluate_clients={cfg.evaluate_clients} and federated.evaluate_fraction="
            f"{cfg.evaluate_fraction:g} both say how many clients are evaluated. Set one to null."
        )
    for name in ("evaluate_clients", "evaluate_fraction", "client_rows_every"):
        value = getattr(cfg, name)
        if value is not None and cfg.holdout_fraction == 0:
            raise ConfigError(
                f"federated.{name}={value} has no effect with federated.holdout_fraction=0: no "
                "client has anything to be evaluated on. Set federated.holdout_fraction, e.g. 0.2."
            )
    rows, every = cfg.client_rows_every, cfg.evaluate_every
    if rows is not None and rows % every:
        raise ConfigError(
            f"federated.client_rows_every={rows} is not a multiple of federated.evaluate_every="
            f"{every}, which says when clients are evaluated. Set federated.client_rows_every="
            f"{-(-rows // every) * every}."
        )


def _check_lanes(cfg: FederatedConfig) -> None:
    at_least("federated.lanes", cfg.lanes, 1)
    for other, unsupported in (
        (f"federated.client_timeout={cfg.client_timeout}", cfg.client_timeout is not None),
        ("federated.client_training=batched", cfg.client_training == "batched"),
    ):
        if cfg.lanes is not None and cfg.lanes > 1 and unsupported:
            raise ConfigError(
                f"federated.lanes={cfg.lanes} does not go with {other}. Set federated.lanes=1."
            )


def _check_partition(cfg: FederatedConfig) -> None:
    part, key = cfg.partition, "federated.partition"
    taken = registry.entry("partition", part.name).signature.keys.get("clients")
    if part.clients is None and taken is not None and taken.type is int:
        raise ConfigError(f"{key}.clients is not set. Set it to the number of clients.")
    at_least(f"{key}.clients", part.clients, 1)
    keys = keys_of_ours("federated/partition", part)
    above(f"{key}.alpha", keys.get("alpha"), 0)
    for name in ("min_size", "shards_per_client"):
        at_least(f"{key}.{name}", keys.get(name), 1)
    at_least(f"{key}.quantiles", keys.get("quantiles"), 2)
    if "by" in keys:
        one_of(f"{key}.by", keys["by"], ("auto", "label", "target", "key"))
    if part.clients is not None and cfg.clients_per_round > part.clients:
        raise ConfigError(
            f"federated.clients_per_round={cfg.clients_per_round} is more than the "
            f"{part.clients} clients of {key}.clients. Lower the one or raise the other."
        )


def _check_strategy(cfg: StrategyConfig) -> None:
    """Check ranges; what depends on the cohort's size is checked where the strategy is built."""
    key, keys = "federated.strategy", keys_of_ours("federated/strategy", cfg)
    for name in ("eta", "tau", "server_learning_rate", "bound"):
        above(f"{key}.{name}", keys.get(name), 0)
    for name in ("proximal_mu", "q", "num_malicious_nodes"):
        at_least(f"{key}.{name}", keys.get(name), 0)
    at_least(f"{key}.iterations", keys.get("iterations"), 1)
    for name in ("beta_1", "beta_2", "server_momentum"):
        fraction(f"{key}.{name}", keys.get(name, 0.0))


def _check_rounds(cfg: FederatedConfig) -> None:
    """Check that a schedule over rounds begins before it ends."""
    key = "rounds" if cfg.lr_horizon is None else "lr_horizon"
    rounds = cfg.lr_horizon or cfg.rounds
    for name in ("lr_warmup_rounds", "lr_decay_rounds"):
        needed = getattr(cfg, name) or 0
        if needed >= rounds and needed:
            raise ConfigError(
                f"federated.{name}={needed} is longer than the run: federated.{key}={rounds}. Set "
                f"federated.{name} below {rounds}, or federated.{key} higher."
            )
