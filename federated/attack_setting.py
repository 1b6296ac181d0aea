"""A run with simulated attackers: what is refused, who attacks, and what is told of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from heliotrope.config import Run
from heliotrope.errors import ConfigError
from heliotrope.tasks import Classification

from .attacks.collusion import Colluders
from .attacks.kinds import Attack, Backdoor, Collusion
from .attacks.names import attack_of
from .engine.context import TrainingContext
from .strategies import ModelFacts
from .strategies.conditions import attackers_bounded

__all__ = ["AttackSetting", "attack_setting"]


@dataclass(frozen=True)
class AttackSetting:
    """The attack of a run, and who attacks; `facts` say which weights may be altered."""

    attack: Attack
    attackers: frozenset[int]
    clients: int
    facts: ModelFacts
    run_seed: int
    cohort: int
    bounded: int | None  # attackers of a round that the rule bounds; None: any number

    @property
    def colluders(self) -> Colluders | None:
        """What is done to a round's updates, if attackers know all of them."""
        if not isinstance(self.attack, Collusion):
            return None
        facts = self.facts
        return Colluders(
            self.attack, self.attackers, sorted(facts.parameters), facts.trained, self.run_seed
        )

    def line(self) -> str:
        """Return what a user is told before training."""
        said = (
            f"attack: {len(self.attackers):,} of {self.clients:,} clients are simulated attackers "
            f"({self.attack.name})"
        )
        if self.bounded is None:
            return said
        chance = chance_of_more(self.bounded, len(self.attackers), self.clients, self.cohort)
        if chance == 0:
            return said
        more = f"more than the {self.bounded} that are bounded are in {chance:.2%} of rounds"
        return f"{said}; {more}"

    def told(self) -> dict[str, Any]:
        """Return what the first event and result.json say."""
        return {**vars(self.attack), "clients": sorted(self.attackers), "simulated": True}


def attack_setting(run: Run, context: TrainingContext, facts: ModelFacts) -> AttackSetting | None:
    """Return the attack that a run simulates; `ConfigError` for what it does not go with."""
    cfg, attack = run.federated, attack_of(run.federated)
    if attack is None:
        return None
    chosen = f"federated/attack={attack.name}"
    of_weights = isinstance(attack, Collusion) or bool(attack.transforms(()))
    if cfg.strategy.name == "scaffold" and of_weights:
        raise ConfigError(
            f"{chosen} alters weights, but not the control variates that federated/strategy="
            "scaffold sends beside them. Set federated/strategy=fedavg, or federated/attack="
            "label_flip."
        )
    if cfg.privacy.name != "none" and isinstance(attack, Collusion):
        raise ConfigError(
            f"{chosen} alters updates that the server has, but federated/privacy="
            f"{cfg.privacy.name} clips them before they are added up. Set federated/attack=scaling,"
            " sign_flip or label_flip, or federated/privacy=none."
        )
    population = context.population
    attackers = population.attackers(attack.attackers)
    if isinstance(attack, Backdoor) and isinstance(context.task, Classification):
        attack = replace(attack, target=attack.target or context.task.class_names[0])
    bounded, able = attackers_bounded(cfg), len(population.training())
    return AttackSetting(attack, attackers, able, facts, run.seed, cfg.clients_per_round, bounded)


def chance_of_more(bounded: int, attackers: int, clients: int, cohort: int) -> float:
    """Return with which probability a round's cohort has more than `bounded` attackers.

    It is drawn uniformly (hypergeometric distribution).
    """

    def ways(of: int, some: int) -> float:
        return math.lgamma(of + 1) - math.lgamma(some + 1) - math.lgamma(of - some + 1)

    whole, honest = ways(clients, cohort), clients - attackers
    first = max(bounded + 1, cohort - honest)
    return math.fsum(
        math.exp(ways(attackers, bad) + ways(honest, cohort - bad) - whole)
        for bad in range(first, min(attackers, cohort) + 1)
    )
