"""DP-SGD inside each client, and an account for each: see `privacy.record`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from heliotrope.config import Run
from heliotrope.data import Exchange
from heliotrope.errors import ConfigError
from heliotrope.privacy.accounts import Account, Accounts
from heliotrope.privacy.ledger import Ledger
from heliotrope.privacy.told import promise_to_each, result_of_each
from heliotrope.training.separable import check_separable

from ..engine.context import TrainingContext
from ..engine.poisson_plan import local_steps
from ..privacy.record import Record
from ..strategies.conditions import check_strategy
from ..updates import StepNoise
from .base import Protection, stamp_of
from .conditions import check_tells_nothing_else, chosen

__all__ = ["PrivateClients", "name_of"]


class PrivateClients(Protection):
    """Draws those whose budget has room, charges their steps, and tells them how much noise.

    Who is drawn for which round follows from the seed and from the budgets, so that it is known
    when a run begins: `target_epsilon` gives each client the noise for the rounds it takes part in.
    """

    def __init__(self, privacy: Record, run: Run, context: TrainingContext, path: Path) -> None:
        self._privacy, self._run, self._ledger = privacy, run, Ledger(path)
        self._context, self._population = context, context.population
        self._least = least_cohort(run, len(context.population.training()))
        self._stamp = stamp_of(run)
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
        sizes = context.population.train_sizes(training)
        largest = max(zip(sizes, training, strict=True))[1]
        try:
            privacy.delta_for(max(sizes))
        except ConfigError as error:
            raise ConfigError(f"Client {name_of(context, largest)}: {error}") from error

    def begin(self, server_round: int, saved: Mapping[str, Any]) -> None:
        self._ledger.restore(saved)
        rounds = self._run.federated.rounds
        left = range(server_round + 1, rounds + 1)
        clients = self._population.training()
        turns = Counter(
            client
            for number in range(1, rounds + 1)
            for client in self._population.draw(number, self._run.federated.clients_per_round)
        )
        accounts = {client: self._account(client, turns[client]) for client in clients}
        for account in accounts.values():
            self._ledger.charge("planned", account.mechanism, 0, [account.name])
        self._ledger.sync()
        budget = self._privacy.target_epsilon
        coming = {self._release(number) for number in left}
        self._accounts = Accounts(self._ledger, accounts, coming, len(left), budget)
        self._plan(left)
        noise = {client: a.mechanism.noise_multiplier for client, a in accounts.items()}
        self.noise = StepNoise(noise, self._stamp)

    def _account(self, client: int, turns: int) -> Account:
        """Return a client's account; its noise is that it had before, or fit for so many rounds."""
        cfg, name = self._run.federated, name_of(self._context, client)
        (examples,) = self._population.train_sizes([client])
        steps = local_steps(examples, cfg.local_epochs, cfg.batch_size)
        latest = self._ledger.latest_of(name)
        batch = cfg.batch_size or examples
        noise = None if latest is None else latest.noise_multiplier
        if noise is None:
            noise = _noise(self._privacy, batch, examples, max(1, turns) * steps)
        mechanism = self._privacy.mechanism(batch, examples, steps, noise)
        return Account(name, mechanism, steps, self._privacy.delta_for(examples), examples)

    def _plan(self, rounds: range) -> None:
        """Draw the cohorts of these rounds, up to the last for which enough clients have room."""
        room = {client: self._accounts.room(client) for client in self._accounts.accounts}
        self.last_round = rounds.start - 1
        for number in rounds:
            able = [client for client, more in room.items() if more > 0]
            if len(able) < self._least:
                break
            size = min(self._run.federated.clients_per_round, len(able))
            self._cohorts[number] = self._population.draw(number, size, able)
            self.last_round = number
            for client in self._cohorts[number]:
                room[client] -= 1
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
        turns = Counter(client for cohort in self._cohorts.values() for client in cohort)
        rounds = {client: turns[client] for client in self._accounts.accounts}
        end = self._run.federated.rounds
        return promise_to_each(self._privacy, self._accounts, rounds, self.last_round, end)

    def draw(self, server_round: int) -> list[int]:
        cohort = self._cohorts[server_round]
        self._accounts.charge(self._release(server_round), cohort)
        return cohort

    def told(self, server_round: int) -> Mapping[str, bool | float]:  # noqa: ARG002
        """Return nothing: clients weigh as many as their examples, whose number is public."""
        return {}

    def numbers(self, server_round: int) -> dict[str, float]:
        cohort, accounts = self._cohorts[server_round], self._accounts.accounts
        each = {f"{_BOUND}/{accounts[c].name}": self._accounts.bound(c) for c in cohort}
        return {_BOUND: self._accounts.highest, **each}

    def saved(self) -> dict[str, Any]:
        return self._ledger.saved()

    def result(self) -> dict[str, Any]:
        return result_of_each(self._privacy, self._accounts, self._privacy.assumptions())

    def close(self) -> None:
        self._ledger.close()


_BOUND = "privacy/epsilon_rdp"


def name_of(context: TrainingContext, client: int) -> str:
    """Return the natural key of a client's examples, such as a hospital, or else its number."""
    partition, keys = context.population.partition, context.train.keys
    if partition.named is None or keys is None:
        return str(client)
    return str(keys[partition.indices[partition.offsets[client]]])


def least_cohort(run: Run, clients: int) -> int:
    """Return how many clients of a round the strategy needs at least."""
    cfg = run.federated
    for size in range(1, cfg.clients_per_round):
        try:
            check_strategy(replace(cfg, clients_per_round=size), clients)
        except ConfigError:
            continue
        return size
    return cfg.clients_per_round


@lru_cache(maxsize=4096)
def _noise(privacy: Record, batch: int, examples: int, steps: int) -> float:
    """Return the noise multiplier of clients of a size, found once for all of them."""
    return privacy.mechanism(batch, examples, steps, None).noise_multiplier


def _check_fit(run: Run) -> None:
    """Raise `ConfigError` if a client's examples are prepared by what the others of it are like."""
    if run.data.fit == "per_client":
        raise ConfigError(
            f"{chosen(run)}: data.fit=per_client prepares each example of a client by those beside "
            "it, so that one changes the gradients of all. Set data.fit=none."
        )
