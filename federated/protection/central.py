"""Noise on the sum of clipped updates, by a trusted server; see `privacy.central`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from heliotrope.config import Run
from heliotrope.data import Exchange
from heliotrope.privacy.accountant import RunningBound, Spent, rounds_within
from heliotrope.privacy.ledger import Ledger, salted
from heliotrope.privacy.mechanisms import GaussianMechanism
from heliotrope.privacy.project import TRAINING, added
from heliotrope.privacy.told import promise, result
from heliotrope.seeding import numpy_generator

from ..aggregation import Mean
from ..engine.context import TrainingContext
from ..privacy.base import ClippedSum
from ..privacy.central import Normals, noisy_mean
from ..updates import Weights
from .base import Protection, stamp_of
from .conditions import check_adds_up, check_clipped_once, check_tells_nothing_else

__all__ = ["NoisySum"]


class NoisySum(Protection):
    """Draws cohorts, charges rounds, and adds the noise."""

    _privacy: ClippedSum

    def __init__(self, privacy: ClippedSum, run: Run, context: TrainingContext, path: Path) -> None:
        self._privacy, self._run, self._ledger = privacy, run, Ledger(path)
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
        self._stamp = stamp_of(run, context.content)
        self._releases = context.releases
        self._mechanism: GaussianMechanism
        self._bound: RunningBound
        self._before: Spent = ()
        self._rounds_before = 0
        self.last_round = run.federated.rounds

    @classmethod
    def check(
        cls,
        privacy: ClippedSum,
        run: Run,
        context: TrainingContext,
        strategy: Strategy,
        exchange: Exchange,
    ) -> None:
        check_adds_up(run, context, strategy)
        check_clipped_once(run, privacy.clip)
        check_tells_nothing_else(run, context, exchange)
        privacy.delta_for(len(context.population.training()))

    def begin(self, server_round: int, saved: Mapping[str, Any]) -> None:
        self._ledger.restore(saved)
        self._stamp = self._renewed(self._stamp)
        rounds = self._run.federated.rounds
        latest = self._ledger.latest
        noise = None if latest is None else latest.noise_multiplier
        statistics = self._ledger.statistics(self._releases)
        mechanism = self._privacy.mechanism(
            self._cohort, self._clients, rounds, noise, before=statistics
        )
        self._mechanism = self._continued(mechanism, server_round)
        # Rounds that a crash has cut off are done again, alike: charged already, but still to come.
        coming = {self._release(n) for n in range(server_round + 1, rounds + 1)}
        done = self._ledger.without(coming, purpose=TRAINING)
        spent = added(statistics, done)
        self._before, self._rounds_before = spent, server_round
        self._bound = RunningBound(self._mechanism, self._delta, spent)
        budget, left = self._privacy.target_epsilon, rounds - server_round
        if budget is not None and (noise or self._privacy.noise_multiplier) is not None:
            within = rounds_within(self._mechanism, left, self._delta, budget, spent)
            self.last_round = server_round + within
        left = self.last_round - server_round
        self._ledger.reserve(added(done, [(self._mechanism, left)]), self._releases)
        self._ledger.charge_all(self._releases)

    def _renewed(self, stamp: str) -> str:
        """Return the stamp of what is released from now on."""
        return salted(stamp, self._ledger.salt(stamp))

    def _continued(self, mechanism: GaussianMechanism, server_round: int) -> GaussianMechanism:  # noqa: ARG002
        """Return the mechanism as it goes on after `server_round` rounds."""
        return mechanism

    def _release(self, server_round: int) -> str:
        """Return the name of what a round releases: the same if noise and sum are the same."""
        return f"round {server_round} {self._stamp}"

    def line(self) -> str:
        rounds = self.last_round - self._rounds_before
        spent, last = (*self._before, (self._mechanism, rounds)), self._run.federated.rounds
        until = f" (the budget ends there, before round {last})" if self.last_round < last else ""
        end = f"round {self.last_round}{until}"
        return promise(self._privacy, self._mechanism, spent, self._delta, end)

    def draw(self, server_round: int) -> list[int]:
        self._ledger.charge(self._release(server_round), self._mechanism)
        return self._drawn(server_round)

    def _drawn(self, server_round: int) -> list[int]:
        """Return a cohort that is independent of others wherever the noise is.

        Releases are composed as of cohorts drawn anew: the same cohort with other noise, as of a
        round done again or of another trial, would tell more than is charged for.
        """
        stream = self._stream()
        if self._mechanism.sampling == "poisson":
            return self._population.draw_each(server_round, self._cohort, stream)
        return self._population.draw(server_round, self._cohort, stream=stream)

    def release(self, server_round: int, mean: Mean | None, beginning: Weights) -> Mean:
        """Return the round's noisy mean, once it is charged."""
        self._ledger.sync()
        if mean is None:
            total = {n: value.double().mul(0) for n, value in beginning.items()}
        else:
            total = {n: value * mean.weight for n, value in mean.differences.items()}
        trained = set(self._same.values())
        generator = self._generator(server_round)
        noisy = noisy_mean(total, trained, self._deviation(), self._cohort, generator)
        noisy |= {name: noisy[first] for name, first in self._same.items()}
        clients = () if mean is None else mean.clients
        return Mean(clients, self._cohort, noisy)

    def _deviation(self) -> float:
        """Return the standard deviation of the noise on the present round's sum."""
        return self._privacy.deviation(self._mechanism)

    def _generator(self, server_round: int) -> Normals:
        """Return what a round draws noise from: the same again if the round is the same again."""
        return self._seeded("privacy", server_round)

    def _seeded(self, stream: str, server_round: int) -> np.random.Generator:
        return numpy_generator(self._run.seed, stream, server_round, *self._stream())

    def _stream(self) -> tuple[str, str]:
        """Return what tells noise and cohorts from those of other settings of the same seed."""
        # Of a target, the strength depends on the rounds.
        return self._stamp, repr(self._mechanism.noise_multiplier)

    def numbers(self, server_round: int) -> dict[str, float]:
        bound = self._bound.after(server_round - self._rounds_before)
        return {"privacy/epsilon_rdp": bound}

    def saved(self) -> dict[str, Any]:
        return self._ledger.saved()

    def result(self) -> dict[str, Any]:
        told = self._assumptions()
        spent, statistics = self._ledger.spent, self._ledger.statistics()
        return result(self._privacy, self._mechanism, spent, self._delta, told, statistics)

    def close(self) -> None:
        self._ledger.close()
