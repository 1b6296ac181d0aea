"""What makes the sensitivity of a sum unknown, or tells of clients beside it: refused by name."""

from __future__ import annotations

from flwr.serverapp.strategy import Strategy
from torch import nn

from heliotrope.config import Run
from heliotrope.data import Exchange
from heliotrope.errors import ConfigError

from ..engine.context import TrainingContext
from ..strategies import reduces
from ..strategies.mean import MeanStrategy

__all__ = ["check_adds_up", "check_clipped_once", "check_tells_nothing_else", "chosen"]

_STATISTICS = nn.modules.batchnorm._NormBase  # noqa: SLF001 - of both kinds, and public by no name


def chosen(run: Run) -> str:
    """Return the choice as it is typed."""
    return f"federated/privacy={run.federated.privacy.name}"


def check_adds_up(run: Run, context: TrainingContext, strategy: Strategy) -> None:
    """Raise `ConfigError` unless the strategy sees nothing of the clients but their sum."""
    cfg = run.federated
    if cfg.reduce == "none":
        raise ConfigError(f"{chosen(run)} adds noise to a sum. Set federated.reduce=auto.")
    summing = isinstance(strategy, MeanStrategy) and not strategy.beside(context.global_weights)
    if not (summing and reduces(cfg, strategy)):
        raise ConfigError(
            f"{chosen(run)} needs a strategy that sees the clients' sum alone, but "
            f"federated/strategy={cfg.strategy.name} takes more, whose sensitivity is unknown. Set "
            "federated/strategy=fedavg, fedprox, fedavgm, fedadam, fedyogi or fedadagrad."
        )


def check_clipped_once(run: Run, clip: float) -> None:
    """Raise `ConfigError` if updates are clipped by another key too."""
    other = run.federated.clip_update_norm
    if other is not None:
        raise ConfigError(
            f"federated.clip_update_norm={other:g} and federated.privacy.clip={clip:g} both clip "
            "updates. Set federated.clip_update_norm=null."
        )


def check_tells_nothing_else(run: Run, context: TrainingContext, exchange: Exchange) -> None:
    """Raise `ConfigError` if clients tell of their data beside their trained parameters."""
    for name, module in context.model.named_modules():
        if isinstance(module, _STATISTICS) and module.track_running_stats:
            raise ConfigError(
                f"{chosen(run)}: {name or 'the model'} is a {type(module).__name__}, whose running "
                f"statistics are told without noise. Use GroupNorm, or track_running_stats=False."
            )
    if exchange.bytes_up and not exchange.charged:
        raise ConfigError(
            f"{chosen(run)}: data.fit={run.data.fit} lets clients tell {', '.join(exchange.told)} "
            "without noise. Set data.fit=none, with which they tell nothing: numbers are scaled by "
            "what is known without them, and words numbered by their hash; or data.fit=private, "
            "with which means and deviations get noise and are charged."
        )
