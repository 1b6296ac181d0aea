"""A protected run: who is drawn, what is charged, and what is released of a round."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy
from torch import nn

from heliotrope.config import Run
from heliotrope.data import Exchange
from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import Mechanism, RunningBound, Spent, rounds_within
from heliotrope.privacy.ledger import Ledger, release_stamp
from heliotrope.privacy.told import promise, result
from heliotrope.seeding import numpy_generator

from .aggregation import Mean
from .engine.context import TrainingContext
from .privacy.central import Central, noisy_mean
from .privacy.names import privacy_of
from .strategies import reduces
from .strategies.mean import MeanStrategy

__all__ = ["Protection", "check_protectable", "protected"]

_STATISTICS = nn.modules.batchnorm._NormBase  # noqa: SLF001 - of both kinds, and public by no name


@contextmanager
def protected(run: Run, context: TrainingContext, path: Path) -> Iterator[Protection | None]:
    """Yield the protection that the configuration asks for, if any: its ledger is at `path`."""
    privacy = privacy_of(run.federated)
    if privacy is None:
        yield None
        return
    with closing(Ledger(path)) as ledger:
        yield Protection(privacy, run, context, ledger)


def check_protectable(
    run: Run, context: TrainingContext, strategy: Strategy, exchange: Exchange
) -> None:
    """Raise `ConfigError` for what cannot be accounted for; nothing is asked without privacy."""
    cfg, privacy = run.federated, privacy_of(run.federated)
    if privacy is None:
        return
    chosen = f"federated/privacy={cfg.privacy.name}"
    if cfg.reduce == "none":
        raise ConfigError(f"{chosen} adds noise to a sum. Set federated.reduce=auto.")
    weights = context.global_weights
    summing = isinstance(strategy, MeanStrategy) and not strategy.beside(weights)
    if not (summing and reduces(cfg, strategy)):
        raise ConfigError(
            f"{chosen} needs a strategy that sees the clients' sum alone, but federated/strategy="
            f"{cfg.strategy.name} takes more, whose sensitivity is unknown. Set "
            "federated/strategy=fedavg, fedprox, fedavgm, fedadam, fedyogi or fedadagrad."
        )
    if cfg.clip_update_norm is not None:
        raise ConfigError(
            f"federated.clip_update_norm={cfg.clip_update_norm:g} and federated.privacy.clip="
            f"{privacy.clip:g} both clip updates. Set federated.clip_update_norm=null."
        )
    for name, module in context.model.named_modules():
        if isinstance(module, _STATISTICS) and module.track_running_stats:
            raise ConfigError(
                f"{chosen}: {name or 'the model'} is a {type(module).__name__}, whose running "
                f"statistics are told without noise. Use GroupNorm, or track_running_stats=False."
            )
    if exchange.bytes_up:
        raise ConfigError(
            f"{chosen}: data.fit={run.data.fit} lets clients tell {', '.join(exchange.told)} "
            "without noise. Set data.fit=none, or data.fit=per_client, with which they tell "
            "nothing."
        )
    clients = len(context.population.training())
    privacy.delta_for(clients)


class Protection:
    """Draws cohorts, charges rounds, and adds the noise.

    Parameters
    ----------
    privacy
        The keys.
    run, context
        Whose seed, clients and model are meant.
    ledger
        Of the run.
    """

    def __init__(
        self, privacy: Central, run: Run, context: TrainingContext, ledger: Ledger
    ) -> None:
        self._privacy, self._run, self._ledger = privacy, run, ledger
        self._population = context.population
        self._clients = len(context.population.training())
        self._cohort = run.federated.clients_per_round
        self._delta = privacy.delta_for(self._clients)
        first: dict[int, str] = {}
        named = context.model.named_parameters(remove_duplicate=False)
        self._same = {
            name: first.setdefault(id(p), name)
            for name, p in named
            if p.requires_grad and name in context.global_weights
        }
        self._stamp = _stamp(run)
        self._mechanism: Mechanism
        self._bound: RunningBound
        self._before: Spent = ()
        self._rounds_before = 0
        self.last_round = run.federated.rounds
        """The last round within the budget."""

    def begin(self, server_round: int, saved: Mapping[str, Any]) -> None:
        """Fix noise and budget of a run that has done `server_round` rounds.

        `saved` is what a checkpoint has of the ledger.
        """
        self._ledger.restore(saved)
        rounds = self._run.federated.rounds
        # Rounds that a crash has cut off are done again, alike: charged already, but still to come.
        spent = self._ledger.without(
            {self._release(n) for n in range(server_round + 1, rounds + 1)}
        )
        latest = self._ledger.latest
        noise = None if latest is None else latest.noise_multiplier
        self._mechanism = self._privacy.mechanism(self._cohort, self._clients, rounds, noise)
        self._before, self._rounds_before = spent, server_round
        self._bound = RunningBound(self._mechanism, self._delta, spent)
        budget, left = self._privacy.target_epsilon, rounds - server_round
        if budget is not None and (noise or self._privacy.noise_multiplier) is not None:
            within = rounds_within(self._mechanism, left, self._delta, budget, spent)
            self.last_round = server_round + within

    def _release(self, server_round: int) -> str:
        return f"round {server_round} {self._stamp}"

    def line(self) -> str:
        """Return what a user is told before training."""
        rounds = self.last_round - self._rounds_before
        spent, last = (*self._before, (self._mechanism, rounds)), self._run.federated.rounds
        until = f" (the budget ends there, before round {last})" if self.last_round < last else ""
        end = f"round {self.last_round}{until}"
        return promise(self._privacy, self._mechanism, spent, self._delta, end)

    def draw(self, server_round: int) -> list[int]:
        """Begin to charge a round, and return its cohort; with Poisson sampling it may be empty."""
        self._ledger.charge(self._release(server_round), self._mechanism)
        if self._mechanism.sampling == "poisson":
            return self._population.draw_each(server_round, self._cohort)
        return self._population.draw(server_round, self._cohort)

    def release(self, server_round: int, mean: Mean | None, beginning: Mapping[str, Any]) -> Mean:
        """Return the round's noisy mean, once it is charged; without clients, `mean` is None.

        `beginning` are the weights of which the shapes are taken if there is no mean.
        """
        self._ledger.sync()
        if mean is None:
            total = {n: value.double().mul(0) for n, value in beginning.items()}
        else:
            total = {n: value * mean.weight for n, value in mean.differences.items()}
        trained = set(self._same.values())
        deviation = self._privacy.deviation(self._mechanism)
        generator = numpy_generator(self._run.seed, "privacy", server_round, self._stamp)
        noisy = noisy_mean(total, trained, deviation, self._cohort, generator)
        noisy |= {name: noisy[first] for name, first in self._same.items()}
        clients = () if mean is None else mean.clients
        return Mean(clients, self._cohort, noisy)

    def bound(self, server_round: int) -> float:
        """Return an upper bound on epsilon after a round, by RDP."""
        return self._bound.after(server_round - self._rounds_before)

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return self._ledger.saved()

    def result(self) -> dict[str, Any]:
        """Return what result.json says."""
        told = self._privacy.assumptions()
        return result(self._privacy, self._mechanism, self._ledger.spent, self._delta, told)


def _stamp(run: Run) -> str:
    """Return what a round's noise and charge depend on beside the run's seed.

    A round that is done again after a crash gives the same sum, and may have the same noise, if
    all that a resumed run may change is as before. What clients are given up for their time is not
    the same twice.
    """
    lost = () if run.federated.client_timeout is None else (secrets.token_hex(8),)
    return release_stamp(run.plugins, run.device, getattr(run.data, "dir", None), *lost)
