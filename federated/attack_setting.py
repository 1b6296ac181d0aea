"""A run with simulated attackers: what is refused, who attacks, and what is told of it."""

from __future__ import annotations

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

__all__ = ["AttackSetting", "attack_setting"]


@dataclass(frozen=True)
class AttackSetting:
    """The attack of a run, and who attacks; `facts` say which weights may be altered."""

    attack: Attack
    attackers: frozenset[int]
    clients: int
    facts: ModelFacts
    run_seed: int

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
        return (
            f"attack: {len(self.attackers):,} of {self.clients:,} clients are simulated attackers "
            f"({self.attack.name})"
        )

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
    return AttackSetting(attack, attackers, len(population.training()), facts, run.seed)
