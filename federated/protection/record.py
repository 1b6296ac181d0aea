"""DP-SGD inside each client, and an account for each: see `privacy.record`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from heliotrope.config import Run
from heliotrope.data import Exchange
from heliotrope.errors import ConfigError
from heliotrope.privacy.accounts import Accounts
from heliotrope.privacy.ledger import PLANNED, Ledger, salted
from heliotrope.privacy.told import promise_to_each, result_of_each
from heliotrope.training.separable import check_separable

from ..engine.context import TrainingContext
from ..privacy.record import Record, names_of, schedule, turns_of
from ..secure_aggregation.names import secure_aggregation_of
from ..strategies.conditions import check_strategy
from ..updates import StepNoise
from .base import Protection, stamp_of
from .conditions import check_tells_nothing_else, chosen

__all__ = ["PrivateClients"]


class PrivateClients(Protection):
    """Draws those whose budget has room, charges their steps, and tells them how much noise.

    Who is drawn for which round follows from the seed and from the budgets, so that it is known
    when a run begins: `target_epsilon` gives each client the noise for the rounds it takes part in.
    """

    _privacy: Record

    def __init__(self, privacy: Record, run: Run, context: TrainingContext, path: Path) -> None:
        self._privacy, self._run, self._ledger = privacy, run, Ledger(path)
        self._population = context.population
        self._names = names_of(context.population.partition, context.train)
        self._least = least_cohort(run, len(context.population.training()))
        self._stamp = stamp_of(run, context.content)
        self._accounts: Accounts
        self._cohorts: dict[int, list[int]] = {}  # of the rounds to come
        self.last_round = run.federated.rounds

    @classmethod
    def check(
        cls,
        privacy: Record,
        run: Run,
        context: TrainingContext,
        strategy: Strategy,  # noqa: ARG003 - what it does with private updates tells nothing more
        exchange: Exchange,
    ) -> None:
        if run.privacy.ledger is not None:
            raise ConfigError(
                f"{chosen(run)}: privacy.ledger={run.privacy.ledger} counts what runs tell of all "
                "clients alike, and here each client has an account of its own. Set "
                "privacy.ledger=null."
            )
        _check_fit(run)
        check_separable(chosen(run), context.model, context.task)
        check_tells_nothing_else(run, context, exchange)
        if run.federated.strategy.name.removeprefix("flower_") == "qfedavg":
            raise ConfigError(
                f"{chosen(run)}: clients tell their loss to federated/strategy="
                f"{run.federated.strategy.name}, without noise. Set federated/strategy=fedavg."
            )
        if run.federated.strategy.name == "fltrust":
            raise ConfigError(
                f"{chosen(run)}: the server of federated/strategy=fltrust trains on examples of "
                "its own, without noise. Set another federated/strategy, such as geometric_median."
            )
        training = context.population.training()
        if len(training) < len(context.population):
            raise ConfigError(
                f"{chosen(run)}: the training examples of some clients weigh nothing for "
                f"{type(context.task).__name__}, so that these would never be drawn, which tells "
                "of their examples. Leave these clients out of the data."
            )
        sizes = zip(context.population.train_sizes(training), training, strict=True)
        smallest, *_, largest = sorted(sizes) * 2
        for size, client in (smallest, largest):
            try:
                privacy.delta_for(size)
            except ConfigError as error:
                name = names_of(context.population.partition, context.train)[client]
                raise ConfigError(f"Client {name}: {error}") from error

    def begin(self, server_round: int, saved: Mapping[str, Any]) -> None:
        self._ledger.restore(saved)
        self._stamp = salted(self._stamp, self._ledger.salt(self._stamp))
        cfg, clients = self._run.federated, self._population.training()
        everyone = dict.fromkeys(clients, cfg.rounds)
        cohorts = schedule(
            self._population, cfg.clients_per_round, range(1, cfg.rounds + 1), everyone
        )
        turns, sizes = turns_of(cohorts), self._population.train_sizes(clients)
        accounts = {}
        for client, examples in zip(clients, sizes, strict=True):
            latest = self._ledger.latest_of(name := self._names[client])
            noise = None if latest is None else latest.noise_multiplier
            accounts[client] = self._privacy.account(cfg, name, examples, turns[client], noise)
            self._ledger.charge(PLANNED, accounts[client].mechanism, 0, [name])
        self._ledger.sync()
        left = range(server_round + 1, cfg.rounds + 1)
        coming, budget = {self._release(number) for number in left}, self._privacy.target_epsilon
        self._accounts = Accounts(self._ledger, accounts, coming, len(left), budget)
        self._plan(left)
        noise_of = {client: a.mechanism.noise_multiplier for client, a in accounts.items()}
        self.noise = StepNoise(noise_of, self._stamp)

    def _plan(self, rounds: range) -> None:
        """Draw the cohorts of these rounds, up to the last for which enough clients have room."""
        room = {client: self._accounts.room(client) for client in self._accounts.accounts}
        size = self._run.federated.clients_per_round
        self._cohorts = schedule(self._population, size, rounds, room, self._least)
        self.last_round = max(self._cohorts, default=rounds.start - 1)
        if self.last_round == 0:
            key = self._privacy.key
            raise ConfigError(
                f"{key}.noise_multiplier={self._privacy.noise_multiplier:g} spends more in the "
                f"local steps of one round than {key}.target_epsilon="
                f"{self._privacy.target_epsilon:g}, for all but {self._least - 1} clients at most. "
                f"Set {key}.noise_multiplier=null for as much noise as that needs."
            )

    def _release(self, server_round: int) -> str:
        return f"round {server_round} {self._stamp}"

    def line(self) -> str:
        turns = turns_of(self._cohorts)
        rounds = {client: turns[client] for client in self._accounts.accounts}
        end = self._run.federated.rounds
        return promise_to_each(self._privacy, self._accounts, rounds, self.last_round, end)

    def draw(self, server_round: int) -> list[int]:
        cohort = self._cohorts[server_round]
        self._accounts.charge(self._release(server_round), cohort)
        return cohort

    def numbers(self, server_round: int) -> dict[str, float]:
        cohort, accounts = self._cohorts[server_round], self._accounts.accounts
        each = {f"{_BOUND}/{accounts[c].name}": self._accounts.bound(c) for c in cohort}
        return {_BOUND: self._accounts.highest, **each}

    def saved(self) -> dict[str, Any]:
        return self._ledger.saved()

    def result(self) -> dict[str, Any]:
        return result_of_each(self._privacy, self._accounts, self._assumptions())

    def close(self) -> None:
        self._ledger.close()


_BOUND = "privacy/epsilon_rdp"


def least_cohort(run: Run, clients: int) -> int:
    """Return how many clients of a round the strategy, or secure aggregation, needs at least."""
    cfg, secure = run.federated, secure_aggregation_of(run.federated)
    if secure is not None:
        return secure.threshold_of(cfg.clients_per_round)  # all that it goes with need just one
    for size in range(1, cfg.clients_per_round):
        try:
            check_strategy(replace(cfg, clients_per_round=size), clients)
        except ConfigError:
            continue
        return size
    return cfg.clients_per_round


def _check_fit(run: Run) -> None:
    """Raise `ConfigError` if a client's examples are prepared by what the others of it are like."""
    if run.data.fit == "per_client":
        raise ConfigError(
            f"{chosen(run)}: data.fit=per_client prepares each example of a client by those beside "
            "it, so that one changes the gradients of all. Set data.fit=none."
        )
