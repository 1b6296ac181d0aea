"""The kinds of protection: what runs for the keys that a configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from flwr.serverapp.strategy import Strategy

from heliotrope.config import Run
from heliotrope.data import Exchange
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.project import project_charges

from ..engine.context import TrainingContext
from ..privacy.adaptive import Adaptive
from ..privacy.base import ClientPrivacy
from ..privacy.central import Central
from ..privacy.ftrl import Ftrl
from ..privacy.local import Local
from ..privacy.names import privacy_of
from ..privacy.record import Record
from .adaptive import AdaptiveSum
from .base import Protection
from .central import NoisySum
from .ftrl import CorrelatedNoise
from .local import NoisyClients
from .record import PrivateClients

__all__ = ["check_protectable", "protected"]

_KINDS: dict[type[ClientPrivacy], type[Protection]] = {
    Central: NoisySum,
    Adaptive: AdaptiveSum,
    Ftrl: CorrelatedNoise,
    Local: NoisyClients,
    Record: PrivateClients,
}


@contextmanager
def protected(
    run: Run, context: TrainingContext, run_dir: RunDirectory, content: str | None
) -> Iterator[Protection | None]:
    """Yield the protection that the configuration asks for, if any, for data of this hash."""
    privacy = privacy_of(run.federated)
    if privacy is None:
        yield None
        return
    clients = len(context.population.training())
    project = project_charges(run, "federated", run_dir.path, content, privacy, clients)
    kind = _KINDS[type(privacy)]
    with closing(kind(privacy, run, context, run_dir.ledger)) as protection:
        if project is not None:
            protection.charge_to(project)
        yield protection


def check_protectable(
    run: Run, context: TrainingContext, strategy: Strategy, exchange: Exchange
) -> None:
    """Raise `ConfigError` for what cannot be accounted for; nothing is asked without privacy."""
    privacy = privacy_of(run.federated)
    if privacy is not None:
        _KINDS[type(privacy)].check(privacy, run, context, strategy, exchange)
