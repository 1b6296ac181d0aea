"""Checks of a data-parallel run."""

from __future__ import annotations

from heliotrope.config.checks.schedule import check_schedule
from heliotrope.config.checks.values import above, at_least, fraction, one_of
from heliotrope.config.distributed import DilocoConfig, DistributedConfig, MeshConfig
from heliotrope.config.horizon import horizon_of
from heliotrope.config.run import Run
from heliotrope.config.schedule import schedule_of
from heliotrope.config.workers import worker_range
from heliotrope.errors import ConfigError

__all__ = ["check_distributed", "check_sync_batchnorm"]


def check_distributed(run: Run) -> None:
    """Raise `ConfigError` for keys below `distributed` that do not go together."""
    cfg = run.distributed
    _check_numbers(cfg)
    _check_workers(cfg)
    _check_accumulation(cfg)
    check_schedule(schedule_of(cfg), horizon_of(run, "distributed"))
    _check_retention(run)
    _check_early_stopping(run)
    _check_strategy(run)


def _check_numbers(cfg: DistributedConfig) -> None:
    one_of("distributed.launcher", cfg.launcher, ("inline", "torchrun", "ray"))
    for name in (
        "epochs",
        "batch_size",
        "accumulation_steps",
        "evaluate_every",
        "checkpoint_every",
    ):
        at_least(f"distributed.{name}", getattr(cfg, name), 1)
    at_least("distributed.cpus_per_worker", cfg.cpus_per_worker, 1)
    one_of("distributed.precision", cfg.precision, ("fp32", "bf16", "fp16"))
    at_least("distributed.mixup", cfg.mixup, 0)
    if cfg.ema_decay is not None:
        fraction("distributed.ema_decay", cfg.ema_decay)
    at_least("distributed.max_failures", cfg.max_failures, 0)
    at_least("distributed.collective_timeout", cfg.collective_timeout, 1)
    at_least("distributed.log_every_steps", cfg.log_every_steps, 1)
    at_least("distributed.checkpoint_every_steps", cfg.checkpoint_every_steps, 1)


def _check_workers(cfg: DistributedConfig) -> None:
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


def _check_strategy(run: Run) -> None:
    cfg = run.distributed
    one_of("distributed.strategy", cfg.strategy, ("ddp", "fsdp", "local_sgd", "diloco"))
    _check_diloco(cfg)
    _check_mesh(cfg)
    if cfg.sharded_checkpoints and cfg.strategy == "ddp":
        raise ConfigError(
            "distributed.sharded_checkpoints=true has no effect with distributed.strategy=ddp, "
            "whose workers all hold the same. Set distributed.strategy=fsdp, local_sgd or diloco."
        )
    if cfg.strategy == "fsdp" and worker_range(cfg.workers)[0] == 1:
        raise ConfigError(
            "distributed.strategy=fsdp divides the weights among workers, but "
            f"distributed.workers={cfg.workers}. Set distributed.workers=2 or more, or "
            "distributed.strategy=ddp."
        )
    check_sync_batchnorm(cfg, run.device)
    fsdp, local = cfg.strategy == "fsdp", cfg.strategy in ("local_sgd", "diloco")
    half, averaged = cfg.precision == "fp16", cfg.ema_decay is not None
    for key, unsupported, remedy in (
        ("distributed.precision=fp16", local and half, "distributed.precision=bf16"),
        (f"distributed.ema_decay={cfg.ema_decay}", local and averaged, "it to null"),
        ("distributed.sync_batchnorm=true", local and cfg.sync_batchnorm, "it to false"),
        ("optimizer=adafactor", fsdp and run.optimizer.name == "adafactor", "optimizer=adamw"),
    ):
        if unsupported:
            raise ConfigError(
                f"distributed.strategy={cfg.strategy} does not support {key} yet. Set {remedy}, or "
                "distributed.strategy=ddp."
            )


def _check_mesh(cfg: DistributedConfig) -> None:
    mesh, (fewest, most) = cfg.mesh, worker_range(cfg.workers)
    at_least("distributed.mesh.replicate", mesh.replicate, 1)
    at_least("distributed.mesh.shard", mesh.shard, 1)
    if mesh == MeshConfig():
        return
    given = ", ".join(f"{name}: {value}" for name, value in vars(mesh).items() if value is not None)
    key = f"distributed.mesh={{{given}}}"
    if cfg.strategy != "fsdp":
        raise ConfigError(
            f"{key} has no effect with distributed.strategy={cfg.strategy}, whose workers hold "
            "whole weights. Set distributed.strategy=fsdp."
        )
    if fewest != most:
        raise ConfigError(
            f"{key} needs a fixed number of workers, but distributed.workers={cfg.workers}. Set "
            f"distributed.workers={mesh.replicate * (mesh.shard or 2)}."
        )
    shard = mesh.shard or most // mesh.replicate
    if mesh.replicate * shard != most:
        product = "" if mesh.shard is None else f" of {mesh.replicate * shard} worker(s)"
        raise ConfigError(
            f"{key} is a mesh{product} that distributed.workers={most} do not fill: replicate x "
            f"shard must be the number of workers. Set distributed.workers="
            f"{mesh.replicate * max(2, shard)}, or another mesh."
        )
    if shard == 1:
        raise ConfigError(
            f"{key} with distributed.workers={most} leaves whole weights on each worker. Set "
            "distributed.strategy=ddp, or a smaller distributed.mesh.replicate."
        )


def check_sync_batchnorm(cfg: DistributedConfig, device: str) -> None:
    """Raise `ConfigError` if batches cannot be normalised over all ranks on `device`."""
    if cfg.sync_batchnorm and device == "cpu":
        raise ConfigError(
            "distributed.sync_batchnorm=true needs workers on GPUs: torch has it for no other, and "
            "these are on CPUs. Set distributed.sync_batchnorm=false, with which all ranks take "
            "rank 0's statistics, or device=cuda."
        )


def _check_diloco(cfg: DistributedConfig) -> None:
    key, used = "distributed.diloco", {"local_sgd": ("local_steps", "exchange")}
    at_least(f"{key}.local_steps", cfg.diloco.local_steps, 1)
    one_of(f"{key}.exchange", cfg.diloco.exchange, ("fp32", "int8"))
    above(f"{key}.lr", cfg.diloco.lr, 0)
    fraction(f"{key}.momentum", cfg.diloco.momentum)
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
    one_of(f"{key}.mode", cfg.mode, ("auto", "min", "max"))
    at_least(f"{key}.patience", cfg.patience, 1)
    at_least(f"{key}.min_delta", cfg.min_delta, 0)


def _check_accumulation(cfg: DistributedConfig) -> None:
    steps, size = cfg.accumulation_steps, cfg.batch_size
    most = size // worker_range(cfg.workers)[1]
    fits = max(n for n in range(1, min(steps, most) + 1) if size % n == 0)
    remedy = f"Set distributed.accumulation_steps={fits}, or another batch size."
    if size % steps:
        raise ConfigError(
            f"distributed.accumulation_steps={steps} does not divide "
            f"distributed.batch_size={size}. {remedy}"
        )
    if steps > most:
        raise ConfigError(
            f"distributed.accumulation_steps={steps} cuts a worker's {most} examples of "
            f"distributed.batch_size={size} into parts of less than one. {remedy}"
        )


def _check_retention(run: Run) -> None:
    cfg = run.distributed
    at_least("distributed.keep_last", cfg.keep_last, 1)
    at_least("distributed.keep_best", cfg.keep_best, 0)
    if cfg.keep_best and cfg.best_metric is None:
        split = "validation" if run.data.validation_fraction else "test"
        raise ConfigError(
            f"distributed.keep_best={cfg.keep_best} needs a metric to be best by. Set "
            f"distributed.best_metric, such as {split}/loss."
        )
    if cfg.best_metric is not None and not cfg.keep_best:
        raise ConfigError(
            f"distributed.best_metric={cfg.best_metric} has no effect with "
            "distributed.keep_best=0. Set distributed.keep_best to the number of checkpoints."
        )
