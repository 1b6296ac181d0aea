"""Record-level differential privacy inside each client: DP-SGD, and an epsilon for each silo.

Abadi et al. 2016, arXiv:1607.00133. Every local step draws the client's examples one by one, clips
the gradient of each, and adds noise to their sum, before anything leaves the client. What the
server does with the updates tells nothing more of the examples (post-processing).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NoReturn

from heliotrope.config import FederatedConfig, Run
from heliotrope.data import Examples, Partition, Traits, partition
from heliotrope.data.private_fit import statistics_of
from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import Mechanism, rounds_within
from heliotrope.privacy.accounts import Account
from heliotrope.privacy.keys import RecordKeys

from ..population import Population
from .base import ClientPrivacy, no_common_account

__all__ = ["Record", "local_steps", "names_of", "schedule", "turns_of"]


@dataclass(frozen=True)
class Record(RecordKeys, ClientPrivacy):
    """The keys of `federated/privacy=record`; see `choices.record`."""

    equal_weights: ClassVar[bool] = False

    def delta_for(self, count: int) -> float:
        """Return the delta for a client of so many examples."""
        if count == 1:
            raise ConfigError(
                "federated/privacy=record cannot hide an example among others of a client that has "
                "only one. Leave such clients out, or divide the data among fewer."
            )
        return super().delta_for(count)

    def of_everybody(self, population: int, noise: float) -> NoReturn:  # noqa: ARG002
        """Raise `ConfigError`: a sum of all clients is in no client's account."""
        no_common_account("record")

    def assumptions(self) -> list[str]:
        """Return what the figure depends on, a sentence each."""
        drawn = (
            "each step draws each of a client's examples by itself, with the same probability, in "
            "secret, and the client itself clips and adds the noise"
        )
        released = (
            "only models are released: losses that clients tell and evaluations carry no noise, "
            "and stay inside"
        )
        return [
            "a record is one training example, held by one client; how many each holds is public",
            drawn,
            "which clients take part in a round is public: nothing is gained by drawing them",
            released,
        ]

    def account(
        self, cfg: FederatedConfig, name: str, examples: int, turns: int, noise: float | None
    ) -> Account:
        """Return the account of a client with so many examples.

        `noise` is its multiplier in a run that goes on; None: as the keys say, for so many `turns`:
        rounds that it takes part in.
        """
        batch = cfg.batch_size or examples
        steps = local_steps(examples, cfg.local_epochs, cfg.batch_size)
        if noise is None:
            noise = _noise(self, batch, examples, max(1, turns) * steps)
        mechanism = self.mechanism(batch, examples, steps, noise)
        return Account(name, mechanism, steps, self.delta_for(examples), examples)

    def silos(self, run: Run, train: Examples) -> list[tuple[Account, int]]:
        """Return the account of each client of a run that begins, and its rounds within budget."""
        statistics_of(run, self, len(train))
        cfg = run.federated
        parts = partition(cfg.partition, Traits.of(train), run.seed)
        population = Population(parts, cfg.holdout_fraction, run.seed)
        clients, size = population.training(), cfg.clients_per_round
        rounds = range(1, cfg.rounds + 1)
        turns = turns_of(schedule(population, size, rounds, dict.fromkeys(clients, cfg.rounds)))
        names = names_of(parts, train)
        sizes = dict(zip(clients, population.train_sizes(clients), strict=True))
        found = {c: self.account(cfg, names[c], sizes[c], turns[c], None) for c in clients}
        room = dict.fromkeys(clients, cfg.rounds)
        if self.noise_multiplier is not None and self.target_epsilon is not None:
            room = {c: _room(a, cfg.rounds, self.target_epsilon) for c, a in found.items()}
        turns = turns_of(schedule(population, size, rounds, room))
        return [(account, turns[client]) for client, account in found.items()]


def local_steps(examples: int, epochs: int, batch_size: int | None) -> int:
    """Return how many steps a client with so many examples takes in a round."""
    return epochs * -(-examples // (batch_size or examples))


def names_of(parts: Partition, train: Examples) -> list[str]:
    """Return what clients are called: the natural key of their examples, or else their number."""
    if parts.named is None or train.keys is None:
        return [str(client) for client in range(len(parts))]
    return [str(key) for key in train.keys[parts.indices[parts.offsets[:-1]]]]


def schedule(
    population: Population,
    size: int,
    rounds: Iterable[int],
    room: Mapping[int, int],
    least: int = 1,
) -> dict[int, list[int]]:
    """Return the cohorts of `rounds`, up to the last for which `least` clients have room.

    Each is of `size` clients, or of all that have room, which `room` counts in rounds.
    """
    left, found = dict(room), {}
    for number in rounds:
        able = [client for client, more in left.items() if more > 0]
        if len(able) < least:
            break
        found[number] = population.draw(number, min(size, len(able)), able)
        for client in found[number]:
            left[client] -= 1
    return found


def turns_of(cohorts: Mapping[int, Iterable[int]]) -> Counter[int]:
    """Return in how many cohorts each client is."""
    return Counter(client for cohort in cohorts.values() for client in cohort)


@lru_cache(maxsize=4096)
def _noise(privacy: Record, batch: int, examples: int, steps: int) -> float:
    """Return the noise multiplier of clients of a size, found once for all of them."""
    return privacy.mechanism(batch, examples, steps, None).noise_multiplier


@lru_cache(maxsize=4096)
def _rounds(mechanism: Mechanism, releases: int, delta: float, rounds: int, budget: float) -> int:
    return rounds_within(mechanism, rounds * releases, delta, budget) // releases


def _room(account: Account, rounds: int, budget: float) -> int:
    """Return how many rounds, at most `rounds`, a new client's budget has room for."""
    return _rounds(account.mechanism, account.releases, account.delta, rounds, budget)
