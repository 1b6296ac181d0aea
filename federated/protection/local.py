"""Clients that add noise to their own updates, and an account for each; see `privacy.local`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from heliotrope.config import Run
from heliotrope.data import Exchange
from heliotrope.errors import ConfigError
from heliotrope.privacy.accounts import Account, Accounts
from heliotrope.privacy.ledger import PLANNED, Ledger, salted
from heliotrope.privacy.told import promise_to_each, result_of_each
from heliotrope.training.separable import changed_by_a_pass

from ..engine.context import TrainingContext
from ..privacy.local import Local
from ..strategies.mean import MeanStrategy
from ..updates import StepNoise
from .base import Protection, stamp_of
from .conditions import check_clipped_once, check_tells_nothing_else, chosen

__all__ = ["NoisyClients"]


class NoisyClients(Protection):
    """Lets clients take part in turn, charges each, and tells them how much noise.

    The run ends before a round in which a client would spend more than its budget. As many clients
    take part in every round, so that a strategy can need so many.
    """

    _privacy: Local

    def __init__(self, privacy: Local, run: Run, context: TrainingContext, path: Path) -> None:
        self._privacy, self._run, self._ledger = privacy, run, Ledger(path)
        self._population = context.population
        self._stamp = stamp_of(run, context.content)
        self._accounts: Accounts
        self._rounds_before = 0
        self.last_round = run.federated.rounds

    @classmethod
    def check(
        cls,
        privacy: Local,
        run: Run,
        context: TrainingContext,
        strategy: Strategy,
        exchange: Exchange,
    ) -> None:
        check_clipped_once(run, privacy.clip)
        check_tells_nothing_else(run, context, exchange)
        changed = changed_by_a_pass(context.model, context.task, trained=False)
        if changed is not None:
            raise ConfigError(
                f"{chosen(run)}: a pass in training changes the model's {changed}, which clients "
                "send beside their updates, without noise. Leave it out of the model."
            )
        name = run.federated.strategy.name
        more = isinstance(strategy, MeanStrategy) and bool(strategy.beside(context.global_weights))
        if more or name.removeprefix("flower_") == "qfedavg":
            raise ConfigError(
                f"{chosen(run)} adds noise to updates, but clients tell federated/strategy={name} "
                "more than these, without noise. Set federated/strategy=fedavg or another that "
                "takes updates alone, such as geometric_median."
            )
        if run.privacy.ledger is not None:
            raise ConfigError(
                f"{chosen(run)} has an account for each client, but privacy.ledger="
                f"{run.privacy.ledger} counts what is told of all alike. Set privacy.ledger=null."
            )
        training = context.population.training()
        if len(training) < len(context.population):
            raise ConfigError(
                f"{chosen(run)}: the training examples of some clients weigh nothing for "
                f"{type(context.task).__name__}, so that these would never be drawn, which tells "
                "of their examples. Leave these clients out of the data."
            )
        privacy.delta_for(len(training))

    def begin(self, server_round: int, saved: Mapping[str, Any]) -> None:
        self._ledger.restore(saved)
        self._stamp = salted(self._stamp, self._ledger.salt(self._stamp))
        cfg, clients = self._run.federated, self._population.training()
        latest = self._ledger.latest
        noise = None if latest is None else latest.noise_multiplier
        mechanism = self._privacy.mechanism(cfg.clients_per_round, len(clients), cfg.rounds, noise)
        self._ledger.charge(PLANNED, mechanism, 0)  # for whoever goes on with the run
        self._ledger.sync()
        delta, budget = self._privacy.delta_for(len(clients)), self._privacy.target_epsilon
        sizes = dict(zip(clients, self._population.train_sizes(clients), strict=True))
        accounts = {
            client: Account(str(client), mechanism, 1, delta, size)
            for client, size in sizes.items()
        }
        left = range(server_round + 1, cfg.rounds + 1)
        coming = {self._release(number) for number in left}
        self._accounts = Accounts(self._ledger, accounts, coming, len(left), budget)
        self._rounds_before, self.last_round = server_round, server_round
        room = {client: self._accounts.room(client) for client in clients}
        for number in left:
            for client in self._turns(number):
                room[client] -= 1
            if min(room.values()) < 0:
                break
            self.last_round = number
        if self.last_round == 0:
            key = self._privacy.key
            raise ConfigError(
                f"{key}.noise_multiplier={mechanism.noise_multiplier:g} spends more in one round "
                f"than {key}.target_epsilon={budget:g}. Set {key}.noise_multiplier=null for as "
                "much noise as that needs."
            )
        self.noise = StepNoise(dict.fromkeys(clients, mechanism.noise_multiplier), self._stamp)

    def _turns(self, server_round: int) -> list[int]:
        return self._population.draw_around(server_round, self._run.federated.clients_per_round)

    def _release(self, server_round: int) -> str:
        return f"round {server_round} {self._stamp}"

    def line(self) -> str:
        rounds = range(self._rounds_before + 1, self.last_round + 1)
        turns = Counter(client for number in rounds for client in self._turns(number))
        each = {client: turns[client] for client in self._accounts.accounts}
        end = self._run.federated.rounds
        return promise_to_each(self._privacy, self._accounts, each, self.last_round, end)

    def draw(self, server_round: int) -> list[int]:
        cohort = self._turns(server_round)
        self._accounts.charge(self._release(server_round), cohort)
        return cohort

    def numbers(self, server_round: int) -> dict[str, float]:  # noqa: ARG002
        return {"privacy/epsilon_rdp": self._accounts.highest}

    def saved(self) -> dict[str, Any]:
        return self._ledger.saved()

    def result(self) -> dict[str, Any]:
        """Return what result.json says: of the clients, who are many, the most."""
        said = result_of_each(self._privacy, self._accounts, self._assumptions())
        each = said.pop("clients").values()
        return said | {
            "noise_multiplier": max(client["noise_multiplier"] for client in each),
            "participations": max(client["releases"] for client in each),
        }

    def close(self) -> None:
        self._ledger.close()
