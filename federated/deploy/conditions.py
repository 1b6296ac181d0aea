"""What a deployment cannot do yet, and a simulation can: refused by name, before any work."""

from __future__ import annotations

from heliotrope.config import Run
from heliotrope.errors import ConfigError

__all__ = ["check_deployable"]


def check_deployable(run: Run, personal: bool) -> None:
    """Raise `ConfigError` for what is simulated only; `personal`: a part of the weights is state.

    What `client_app` refuses is refused there.
    """
    cfg = run.federated
    if cfg.attack.name != "none":
        raise ConfigError(
            f"federated/attack={cfg.attack.name} cannot be deployed: simulated attackers alter "
            "data that a node has for itself. Simulate it with python -m federated, or set "
            "federated/attack=none."
        )
    if run.folds is not None:
        raise ConfigError(
            f"folds={run.folds} divides the examples of one machine, and each node has its own. "
            "Set folds=null."
        )
    if run.audit.canaries:
        raise ConfigError(
            "audit.canaries are planted among the clients of a simulation, and no node has them. "
            "Set audit.canaries=0."
        )
    if personal:
        raise ConfigError(
            f"model={run.model.name} keeps weights for each client, which a deployment cannot "
            "evaluate on the central splits yet. Simulate it with python -m federated, or choose "
            "another model."
        )
