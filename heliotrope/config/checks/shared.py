"""Checks of what both modes and an evaluation use."""

from __future__ import annotations

from importlib.util import find_spec

from heliotrope.config.checks.data import check_data
from heliotrope.config.checks.values import above, at_least, fraction, one_of, within
from heliotrope.config.folds import check_folds
from heliotrope.config.groups import OptimizerConfig, keys_of_ours
from heliotrope.config.project import ProjectConfig
from heliotrope.config.run import Mode, Run
from heliotrope.config.training import TrackingConfig
from heliotrope.errors import ConfigError
from heliotrope.system.redaction import MASK, masked

__all__ = ["check_project", "check_shared", "check_tracking"]


def check_shared(run: Run) -> None:
    """Check what both modes and an evaluation use.

    Raises `ConfigError` naming key, value and remedy.
    """
    at_least("seed", run.seed, 0)
    check_folds(run.folds, run.fold, run.folds_by, run.privacy.selection)
    one_of("device", run.device, ("auto", "cpu", "cuda"))
    at_least("evaluation_batch_size", run.evaluation_batch_size, 1)
    at_least("cluster.wait_seconds", run.cluster.wait_seconds, 0)
    _check_optimizer(run.optimizer)
    fraction("loss.label_smoothing", run.loss.label_smoothing)
    at_least("audit.canaries", run.audit.canaries, 0)
    at_least("loss.l1", run.loss.l1, 0)
    at_least("loss.l2", run.loss.l2, 0)
    check_data(run.data)
    if (run.target.metric is None) != (run.target.value is None):
        missing = "target.value" if run.target.value is None else "target.metric"
        raise ConfigError(f"A target needs both target.metric and target.value. Set {missing}.")


def _check_optimizer(cfg: OptimizerConfig) -> None:
    above("optimizer.lr", cfg.lr, 0)
    at_least("optimizer.weight_decay", cfg.weight_decay, 0)
    above("optimizer.clip_norm", cfg.clip_norm, 0)
    keys = keys_of_ours("optimizer", cfg)
    if "momentum" in keys:
        within("optimizer.momentum", keys["momentum"], 0, 1)
        if keys["nesterov"] and keys["momentum"] == 0:
            raise ConfigError(
                "optimizer.nesterov=true needs momentum. Set optimizer.momentum, e.g. 0.9."
            )
    if "betas" in keys:
        betas = keys["betas"]
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"optimizer.betas={list(betas)} must be two numbers in [0, 1).")
    above("optimizer.eps", keys.get("eps"), 0)
    if keys.get("beta2_decay", 0) > 0:
        raise ConfigError(f"optimizer.beta2_decay={keys['beta2_decay']} must be at most 0.")


def check_project(cfg: ProjectConfig, mode: Mode, protection: str) -> None:
    """Raise `ConfigError` for a ledger that says too little, or of what nothing is accounted for.

    `protection` is the name of the choice of `mode`.
    """
    above("privacy.budget", cfg.budget, 0)
    if cfg.ledger is None:
        for key in ("budget", "delta", "selection"):
            if (value := getattr(cfg, key)) is not None:
                raise ConfigError(
                    f"privacy.{key}={value} is of all runs together, which nothing counts. Set "
                    "privacy.ledger=FILE."
                )
        return
    if protection == "none":
        choice = "federated/privacy=central" if mode == "federated" else "distributed/privacy=dpsgd"
        raise ConfigError(
            f"privacy.ledger={cfg.ledger}, but {mode}/privacy=none: what an unprotected run tells "
            f"has no epsilon. Set {choice}, or privacy.ledger=null."
        )
    if cfg.budget is not None and cfg.delta is None:
        raise ConfigError(
            f"privacy.budget={cfg.budget:g} needs a delta, the probability with which it may fail. "
            "Set privacy.delta, such as 1e-5."
        )
    if cfg.delta is not None:
        within("privacy.delta", cfg.delta, 0, 1, open_low=True)


def check_tracking(cfg: TrackingConfig) -> None:
    """Raise `ConfigError` if a package that `cfg` needs is not there, without importing it.

    Likewise for what is no address, or one copied from a run's config.yaml, without its password.
    """
    for name, wanted in (("tensorboard", cfg.tensorboard), ("mlflow", cfg.mlflow is not None)):
        if wanted and find_spec(name) is None:
            value = "true" if name == "tensorboard" else masked(cfg.mlflow or "")
            raise ConfigError(
                f"tracking.{name}={value} needs the package {name}, which is not installed. "
                f"Run pip install heliotrope[{name}], or leave the key out."
            )
    if cfg.mlflow is not None and cfg.mlflow.strip().lower() in ("", "true", "false"):
        raise ConfigError(
            f"tracking.mlflow={cfg.mlflow} is no address. Set one, such as "
            "sqlite:///mlflow.db, or null for no MLflow."
        )
    if cfg.mlflow is not None and MASK in cfg.mlflow:
        raise ConfigError(
            f"tracking.mlflow={cfg.mlflow} has {MASK} for its password, which is not kept in a "
            "run's files. Set tracking.mlflow with the password."
        )
