"""A run under secure aggregation: what is refused, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.serverapp.strategy import Strategy

from heliotrope.config import Run
from heliotrope.errors import ConfigError

from .engine.context import TrainingContext
from .privacy.base import TRUSTED_SERVER, ClientPrivacy, ClippedSum
from .privacy.names import privacy_of
from .secure_aggregation.graph import degree_of, share_threshold
from .secure_aggregation.names import secure_aggregation_of
from .secure_aggregation.settings import SecAgg
from .secure_rounds import SecureRounds
from .strategies import reduces

__all__ = ["SecureSetting", "secure_setting"]

_SEES_SUMS = (
    "the server sees the exact sum of each round's updates, and adds the noise; it sees no "
    "client's update (secure aggregation)"
)
_CLIPPING = "clipping trusts the clients: under secure aggregation nobody can check it"


@dataclass(frozen=True)
class SecureSetting:
    """The secure aggregation of a run: its keys, its rounds, and the clients of a round."""

    settings: SecAgg
    rounds: SecureRounds
    cohort: int

    def line(self) -> str:
        """Return what a user is told before training."""
        told = self.told()
        quantizer = self.rounds.expected_quantizer
        return (
            f"secure aggregation: sums of {self.cohort} clients open with {told['threshold']} of "
            f"them left; {told['neighbours']} neighbours each, secrets open with "
            f"{told['shares']} shares; {self.settings.bits} bits, weights within "
            f"{quantizer.limit:.4g}, examples times update in steps of {quantizer.step:.4g}"
        )

    def told(self, *, simulated: bool = True) -> dict[str, Any]:
        """Return what result.json says; `simulated`: all clients are in one process."""
        setup = self.settings.setup(self.cohort, self.cohort, 0, 0)
        degree, quantizer = degree_of(setup.neighbours, self.cohort), self.rounds.expected_quantizer
        return {
            "protocol": "SecAgg+",
            "threshold": setup.threshold,
            "neighbours": degree,
            "shares": share_threshold(setup.threshold, degree, self.cohort),
            "bits": self.settings.bits,
            "range": quantizer.limit,
            "step": quantizer.step,
            "simulated": simulated,
        }

    def trusted(self, privacy: Mapping[str, Any]) -> dict[str, Any]:
        """Return what result.json says of privacy, with who is trusted with what here."""
        said = list(privacy["assumptions"])
        if TRUSTED_SERVER in said:
            at = said.index(TRUSTED_SERVER)
            said[at : at + 1] = [_SEES_SUMS, _CLIPPING]
        return {**privacy, "assumptions": said}


def _check_cohorts(run: Run, privacy: ClientPrivacy, settings: SecAgg, clients: int) -> None:
    """Raise `ConfigError` if a round has too few clients, as is known beforehand."""
    cfg = run.federated
    cohort, threshold = cfg.clients_per_round, settings.threshold_of(cfg.clients_per_round)
    least = privacy.least_cohort(cohort, clients, cfg.rounds)
    if least < threshold:
        fits = next(size for size in range(cohort, clients + 1) if clients % size == 0)
        raise ConfigError(
            f"federated/privacy={cfg.privacy.name} takes {clients} clients in turn, of which "
            f"federated.clients_per_round={cohort} leaves {least} for the last round of a pass, "
            f"where federated.secure_aggregation.threshold={threshold} are needed. Set "
            f"federated.clients_per_round={fits}, which leaves no rest."
        )


def secure_setting(run: Run, context: TrainingContext, strategy: Strategy) -> SecureSetting | None:
    """Return the secure aggregation of a run; `ConfigError` for what it does not go with."""
    cfg, settings = run.federated, secure_aggregation_of(run.federated)
    if settings is None:
        return None
    chosen = f"federated/secure_aggregation={cfg.secure_aggregation.name}"
    cohort = cfg.clients_per_round
    settings.threshold_of(cohort)
    settings.check_neighbours(cohort)
    if context.releases:
        raise ConfigError(
            f"{chosen} hides from the server what single clients send, and data.fit=private has "
            "them tell it sums of their data. Set data.fit=none."
        )
    if cfg.reduce == "none":
        raise ConfigError(f"{chosen} opens nothing but sums. Set federated.reduce=auto.")
    if not reduces(cfg, strategy):
        attack = "" if cfg.attack.name == "none" else f" with federated/attack={cfg.attack.name}"
        raise ConfigError(
            f"{chosen} opens nothing but a round's sum, but federated/strategy={cfg.strategy.name}"
            f"{attack} needs each client's update. Set federated/strategy=fedavg, fedprox, fedavgm,"
            " fedadam, fedyogi, fedadagrad or scaffold"
            f"{', and federated/attack=none' if attack else ''}."
        )
    privacy = privacy_of(cfg)
    if isinstance(privacy, ClippedSum) and settings.range is not None:
        raise ConfigError(
            f"federated.secure_aggregation.range={settings.range:g}, but how far a weight may go "
            f"is told by federated.privacy.clip={privacy.clip:g}. Set "
            "federated.secure_aggregation.range=null."
        )
    if privacy is not None:
        _check_cohorts(run, privacy, settings, len(context.population.training()))
    rounds = SecureRounds(settings, context)
    settings.check_precision(rounds.expected_quantizer)
    return SecureSetting(settings, rounds, cohort)
