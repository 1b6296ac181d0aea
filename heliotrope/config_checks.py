"""What the types of a config cannot say: allowed names, ranges, relations between fields."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

from heliotrope.config import (
    SCHEMAS,
    AdafactorConfig,
    AdamConfig,
    DistributedConfig,
    FederatedConfig,
    Mode,
    Run,
    SgdConfig,
    StrategyConfig,
)
from heliotrope.config_errors import unknown_key
from heliotrope.config_federated import (
    DirichletConfig,
    NaturalConfig,
    QuantityConfig,
    ShardsConfig,
)
from heliotrope.config_training import DilocoConfig
from heliotrope.elastic import worker_range
from heliotrope.errors import ConfigError, closest
from heliotrope.trackers import check_installed

__all__ = ["check", "check_shared"]


def _choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"{key}={value} is not one of {', '.join(allowed)}.{closest(value, allowed)}"
        )


def _at_least(key: str, value: float | None, least: float) -> None:
    if value is not None and not value >= least:
        raise ConfigError(f"{key}={value} must be at least {least:g}.")


def _within(key: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not (low < value if open_low else low <= value) or not value <= high:
        left = "(" if open_low else "["
        raise ConfigError(f"{key}={value} must lie in {left}{low:g}, {high:g}].")


def _above(key: str, value: float | None, bound: float) -> None:
    if value is not None and not value > bound:
        raise ConfigError(f"{key}={value} must be greater than {bound:g}.")


def _share(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{key}={value} must lie in [0, 1).")


def check(run: Run, mode: Mode) -> None:
    """Check what types cannot: allowed names, ranges and relations between fields.

    Raises `ConfigError`. Only what `mode` uses is checked.
    """
    _check_keys(run, "")
    for group, choices in SCHEMAS.items():
        _check_name(run, group, choices)
    check_shared(run)
    check_installed(run.tracking)
    if mode == "distributed":
        _check_distributed(run.distributed)
        _check_retention(run)
        _check_early_stopping(run)
        _check_strategy_of_workers(run)
    else:
        _check_federated(run.federated)


def _check_keys(node: Any, path: str) -> None:
    """Refuse keys that no schema has (`+model.hiden=3` gets past Hydra), NaN and infinity."""
    known = [item.name for item in fields(node)]
    for name, value in vars(node).items():
        key = f"{path}{name}"
        if name not in known:
            raise ConfigError(unknown_key(key, value))
        if is_dataclass(value):
            _check_keys(value, f"{key}.")
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{key}={value} is not a finite number. Set one.")


def _check_name(run: Run, group: str, choices: dict[str, type[Any]]) -> None:
    """Refuse `model.name=cnn` instead of `model=cnn`: a name beside another's keys."""
    chosen: Any = run
    for part in group.split("/"):
        chosen = getattr(chosen, part)
    key, name = f"{group.replace('/', '.')}.name", chosen.name
    _choice(key, name, tuple(choices))
    if choices[name] is not type(chosen):
        raise ConfigError(f"{key}={name} does not bring the keys of {name}. Set {group}={name}.")


def check_shared(run: Run) -> None:
    """Check what both modes and an evaluation use."""
    _at_least("seed", run.seed, 0)
    _choice("device", run.device, ("auto", "cpu", "cuda"))
    _at_least("evaluation_batch_size", run.evaluation_batch_size, 1)
    _above("optimizer.lr", run.optimizer.lr, 0)
    _at_least("optimizer.weight_decay", run.optimizer.weight_decay, 0)
    _above("optimizer.clip_norm", run.optimizer.clip_norm, 0)
    if isinstance(run.optimizer, SgdConfig):
        _within("optimizer.momentum", run.optimizer.momentum, 0, 1)
        if run.optimizer.nesterov and run.optimizer.momentum == 0:
            raise ConfigError(
                "optimizer.nesterov=true needs momentum. Set optimizer.momentum, e.g. 0.9."
            )
    if isinstance(run.optimizer, AdamConfig):
        betas = run.optimizer.betas
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"optimizer.betas={list(betas)} must be two numbers in [0, 1).")
        _above("optimizer.eps", run.optimizer.eps, 0)
    if isinstance(run.optimizer, AdafactorConfig) and not run.optimizer.beta2_decay <= 0:
        raise ConfigError(f"optimizer.beta2_decay={run.optimizer.beta2_decay} must be at most 0.")
    _share("loss.label_smoothing", run.loss.label_smoothing)
    _at_least("loss.l1", run.loss.l1, 0)
    _at_least("loss.l2", run.loss.l2, 0)
    _share("data.validation_fraction", run.data.validation_fraction)
    if (run.target.metric is None) != (run.target.value is None):
        missing = "target.value" if run.target.value is None else "target.metric"
        raise ConfigError(f"A target needs both target.metric and target.value. Set {missing}.")
    if run.target.metric is not None:
        _choice("target.metric", run.target.metric, _metrics(run))


def _metrics(run: Run) -> tuple[str, ...]:
    splits = ("test", "validation") if run.data.validation_fraction else ("test",)
    return tuple(f"{split}/{name}" for split in splits for name in ("accuracy", "loss", "macro_f1"))


def _check_distributed(cfg: DistributedConfig) -> None:
    _choice("distributed.launcher", cfg.launcher, ("inline", "torchrun", "ray"))
    for name in (
        "epochs",
        "batch_size",
        "accumulation_steps",
        "evaluate_every",
        "checkpoint_every",
    ):
        _at_least(f"distributed.{name}", getattr(cfg, name), 1)
    _at_least("distributed.cpus_per_worker", cfg.cpus_per_worker, 1)
    _choice("distributed.precision", cfg.precision, ("fp32", "bf16", "fp16"))
    _at_least("distributed.mixup", cfg.mixup, 0)
    if cfg.ema_decay is not None:
        _share("distributed.ema_decay", cfg.ema_decay)
    _at_least("distributed.max_failures", cfg.max_failures, 0)
    _at_least("distributed.collective_timeout", cfg.collective_timeout, 1)
    _at_least("distributed.log_every_steps", cfg.log_every_steps, 1)
    _at_least("distributed.checkpoint_every_steps", cfg.checkpoint_every_steps, 1)
    fewest, most = worker_range(cfg.workers)
    if fewest != most and cfg.launcher != "ray":
        raise ConfigError(
            f"distributed.workers={cfg.workers} needs distributed.launcher=ray, which alone can "
            f"change their number. Set it, or distributed.workers={most}."
        )
    if cfg.launcher == "inline" and most != 1:
        raise ConfigError(
            f"distributed.workers={cfg.workers} has no effect with distributed.launcher=inline, "
            "which is one process. Set distributed.workers=1 or distributed.launcher=ray."
        )
    if cfg.batch_size < most:
        raise ConfigError(
            f"distributed.batch_size={cfg.batch_size} is global and smaller than "
            f"distributed.workers={cfg.workers}. Raise the batch size or use fewer workers."
        )
    _check_accumulation(cfg)
    _check_schedule(cfg)


def _check_schedule(cfg: DistributedConfig) -> None:
    """Check a schedule by itself; whether it fits the run depends on the data."""
    schedules = ("constant", "linear", "cosine", "step", "one_cycle")
    _choice("distributed.lr_schedule", cfg.lr_schedule, schedules)
    _at_least("distributed.lr_warmup_steps", cfg.lr_warmup_steps, 0)
    _at_least("distributed.lr_decay_steps", cfg.lr_decay_steps, 1)
    _within("distributed.lr_decay_factor", cfg.lr_decay_factor, 0, 1, open_low=True)
    if cfg.lr_schedule == "step" and cfg.lr_decay_steps is None:
        raise ConfigError(
            "distributed.lr_schedule=step needs distributed.lr_decay_steps, the number of steps "
            "between two decays. Set it."
        )
    if cfg.lr_schedule != "step" and cfg.lr_decay_steps is not None:
        raise ConfigError(
            f"distributed.lr_decay_steps={cfg.lr_decay_steps} has no effect with "
            f"distributed.lr_schedule={cfg.lr_schedule}. Set distributed.lr_schedule=step."
        )
    if cfg.lr_schedule == "one_cycle" and cfg.lr_warmup_steps:
        raise ConfigError(
            f"distributed.lr_warmup_steps={cfg.lr_warmup_steps} has no place in "
            "distributed.lr_schedule=one_cycle, which rises by itself. Set "
            "distributed.lr_warmup_steps=0."
        )


def _check_strategy_of_workers(run: Run) -> None:
    cfg = run.distributed
    _choice("distributed.strategy", cfg.strategy, ("ddp", "fsdp", "local_sgd", "diloco"))
    _check_diloco(cfg)
    if cfg.sharded_checkpoints and cfg.strategy != "fsdp":
        raise ConfigError(
            "distributed.sharded_checkpoints=true has no effect with distributed.strategy="
            f"{cfg.strategy}, whose workers hold whole weights. Set distributed.strategy=fsdp."
        )
    if cfg.strategy == "fsdp" and worker_range(cfg.workers)[0] == 1:
        raise ConfigError(
            "distributed.strategy=fsdp divides the weights among workers, but "
            f"distributed.workers={cfg.workers}. Set distributed.workers=2 or more, or "
            "distributed.strategy=ddp."
        )
    fsdp, local = cfg.strategy == "fsdp", cfg.strategy in ("local_sgd", "diloco")
    half, averaged = cfg.precision == "fp16", cfg.ema_decay is not None
    for key, unsupported, remedy in (
        ("distributed.precision=fp16", local and half, "distributed.precision=bf16"),
        (f"distributed.ema_decay={cfg.ema_decay}", local and averaged, "it to null"),
        ("optimizer=adafactor", fsdp and run.optimizer.name == "adafactor", "optimizer=adamw"),
    ):
        if unsupported:
            raise ConfigError(
                f"distributed.strategy={cfg.strategy} does not support {key} yet. Set {remedy}, or "
                "distributed.strategy=ddp."
            )


def _check_diloco(cfg: DistributedConfig) -> None:
    key, used = "distributed.diloco", {"local_sgd": ("local_steps", "exchange")}
    _at_least(f"{key}.local_steps", cfg.diloco.local_steps, 1)
    _choice(f"{key}.exchange", cfg.diloco.exchange, ("fp32", "int8"))
    _above(f"{key}.lr", cfg.diloco.lr, 0)
    _share(f"{key}.momentum", cfg.diloco.momentum)
    if cfg.strategy == "diloco":
        if cfg.diloco.nesterov and cfg.diloco.momentum == 0:
            raise ConfigError(f"{key}.nesterov=true needs momentum. Set {key}.momentum, e.g. 0.9.")
        return
    for name, default in vars(DilocoConfig()).items():
        value = getattr(cfg.diloco, name)
        if value != default and name not in used.get(cfg.strategy, ()):
            raise ConfigError(
                f"{key}.{name}={value} has no effect with distributed.strategy={cfg.strategy}. "
                "Set distributed.strategy=diloco."
            )


def _check_early_stopping(run: Run) -> None:
    cfg, key = run.distributed.early_stopping, "distributed.early_stopping"
    _choice(f"{key}.mode", cfg.mode, ("auto", "min", "max"))
    _at_least(f"{key}.patience", cfg.patience, 1)
    _at_least(f"{key}.min_delta", cfg.min_delta, 0)
    if cfg.metric is not None:
        _choice(f"{key}.metric", cfg.metric, _metrics(run))


def _check_accumulation(cfg: DistributedConfig) -> None:
    parts, size = cfg.accumulation_steps, cfg.batch_size
    most = size // worker_range(cfg.workers)[1]
    fits = max(n for n in range(1, min(parts, most) + 1) if size % n == 0)
    remedy = f"Set distributed.accumulation_steps={fits}, or another batch size."
    if size % parts:
        raise ConfigError(
            f"distributed.accumulation_steps={parts} does not divide "
            f"distributed.batch_size={size}. {remedy}"
        )
    if parts > most:
        raise ConfigError(
            f"distributed.accumulation_steps={parts} cuts a worker's {most} examples of "
            f"distributed.batch_size={size} into parts of less than one. {remedy}"
        )


def _check_retention(run: Run) -> None:
    cfg = run.distributed
    _at_least("distributed.keep_last", cfg.keep_last, 1)
    _at_least("distributed.keep_best", cfg.keep_best, 0)
    if cfg.best_metric is not None:
        _choice("distributed.best_metric", cfg.best_metric, _metrics(run))
    if cfg.keep_best and cfg.best_metric is None:
        raise ConfigError(
            f"distributed.keep_best={cfg.keep_best} needs a metric to be best by. Set "
            f"distributed.best_metric, such as {_metrics(run)[-2]}."
        )
    if cfg.best_metric is not None and not cfg.keep_best:
        raise ConfigError(
            f"distributed.best_metric={cfg.best_metric} has no effect with "
            "distributed.keep_best=0. Set distributed.keep_best to the number of checkpoints."
        )


def _check_federated(cfg: FederatedConfig) -> None:
    _choice("federated.pool", cfg.pool, ("inprocess", "ray"))
    kinds = ("auto", "sequential", "compiled", "batched")
    _choice("federated.client_training", cfg.client_training, kinds)
    _at_least("federated.cpus_per_worker", cfg.cpus_per_worker, 1)
    _at_least("federated.gpus_per_worker", cfg.gpus_per_worker, 0)
    _at_least("federated.stack_size", cfg.stack_size, 1)
    _check_lanes(cfg)
    _above("federated.client_timeout", cfg.client_timeout, 0)
    _choice("federated.reduce", cfg.reduce, ("auto", "worker", "none"))
    for name in (
        "rounds",
        "clients_per_round",
        "local_epochs",
        "batch_size",
        "workers",
        "evaluate_every",
        "checkpoint_every",
    ):
        _at_least(f"federated.{name}", getattr(cfg, name), 1)
    _within("federated.quorum", cfg.quorum, 0, 1, open_low=True)
    _share("federated.holdout_fraction", cfg.holdout_fraction)
    if cfg.pool == "inprocess" and cfg.workers != 1:
        raise ConfigError(
            f"federated.workers={cfg.workers} has no effect with federated.pool=inprocess. "
            "Set federated.pool=ray or federated.workers=1."
        )
    _check_partition(cfg)
    _check_strategy(cfg.strategy)


def _check_lanes(cfg: FederatedConfig) -> None:
    _at_least("federated.lanes", cfg.lanes, 1)
    for other, unsupported in (
        (f"federated.client_timeout={cfg.client_timeout}", cfg.client_timeout is not None),
        ("federated.client_training=batched", cfg.client_training == "batched"),
    ):
        if cfg.lanes is not None and cfg.lanes > 1 and unsupported:
            raise ConfigError(
                f"federated.lanes={cfg.lanes} does not go with {other}. Set federated.lanes=1."
            )


def _check_partition(cfg: FederatedConfig) -> None:
    part = cfg.partition
    key = "federated.partition"
    if part.clients is None and not isinstance(part, NaturalConfig):
        raise ConfigError(f"{key}.clients is not set. Set it to the number of clients.")
    _at_least(f"{key}.clients", part.clients, 1)
    if isinstance(part, DirichletConfig | QuantityConfig):
        _above(f"{key}.alpha", part.alpha, 0)
        _at_least(f"{key}.min_size", part.min_size, 1)
    if isinstance(part, ShardsConfig):
        _at_least(f"{key}.shards_per_client", part.shards_per_client, 1)
    if part.clients is not None and cfg.clients_per_round > part.clients:
        raise ConfigError(
            f"federated.clients_per_round={cfg.clients_per_round} is more than the "
            f"{part.clients} clients of {key}.clients. Lower the one or raise the other."
        )


def _check_strategy(cfg: StrategyConfig) -> None:
    """Check ranges; what depends on the cohort's size is checked where the strategy is built."""
    key = "federated.strategy"
    for name in ("eta", "tau", "server_learning_rate"):
        _above(f"{key}.{name}", getattr(cfg, name, None), 0)
    for name in ("proximal_mu", "q", "num_malicious_nodes"):
        _at_least(f"{key}.{name}", getattr(cfg, name, None), 0)
    for name in ("beta_1", "beta_2", "server_momentum"):
        _share(f"{key}.{name}", getattr(cfg, name, 0.0))
