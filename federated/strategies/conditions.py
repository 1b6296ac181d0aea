"""What a robust rule asks of a round, checked before any work: enough clients, few attackers."""

from __future__ import annotations

from typing import Any

from heliotrope.config.federated import FederatedConfig
from heliotrope.errors import ConfigError

from ..attacks.names import attack_of
from ..fractions import decimal, fraction_rounded_down, fraction_rounded_up
from .robust import least_trimmed

__all__ = ["attackers_bounded", "check_strategy"]

_KEY = "federated.strategy"
_SELECTING = ("krum", "multikrum", "bulyan")
_INPUTS_BESIDE = 3  # those that a rule that selects needs beside
_OF_MAJORITIES = ("fedmedian", "geometric_median", "centered_clipping")


def check_strategy(cfg: FederatedConfig, clients: int) -> None:
    """Raise `ConfigError` where the rule that `cfg` names promises nothing.

    Of the attackers among all `clients`, as many are expected in a round as its share of them.
    """
    strategy: Any = cfg.strategy  # with the keys of its choice
    kind = strategy.name.removeprefix("flower_")
    if kind == "fedtrimmedavg":
        if not 0 < strategy.beta < 0.5:
            raise ConfigError(
                f"{_KEY}.beta={strategy.beta} must lie in (0, 0.5). For a mean of all clients, set "
                "federated/strategy=fedavg."
            )
        _check_clients(cfg, f"{_KEY}.beta={strategy.beta}", least_trimmed(strategy.beta))
    if kind in _SELECTING:
        bad = strategy.num_malicious_nodes
        needed = _inputs_for_each(kind) * bad + _INPUTS_BESIDE
        _check_clients(cfg, f"{_KEY}.num_malicious_nodes={bad}", needed)
    if kind == "multikrum":
        setting = f"{_KEY}.num_nodes_to_select={strategy.num_nodes_to_select}"
        if not 1 <= strategy.num_nodes_to_select <= cfg.clients_per_round:
            raise ConfigError(
                f"{setting} must lie between 1 and federated.clients_per_round="
                f"{cfg.clients_per_round}."
            )
        if bad := strategy.num_malicious_nodes:  # one who selects more has one of them for certain
            setting += f" beside {_KEY}.num_malicious_nodes={bad}"
        _check_clients(cfg, setting, strategy.num_nodes_to_select + bad)
    attack = attack_of(cfg)
    if attack is not None:
        share = decimal(attack.attackers) * cfg.clients_per_round / clients
        _check_attackers(cfg, kind, int(-(-share // 1)))


def attackers_bounded(cfg: FederatedConfig) -> int | None:
    """Return of how many attackers in a round the rule bounds what they can do; None of any number.

    Of rules that bound nothing too. It is asked for the fewest clients a round goes on with.
    """
    strategy: Any = cfg.strategy
    kind, inputs = strategy.name.removeprefix("flower_"), _inputs(cfg, _least(cfg))
    if kind == "fedtrimmedavg":
        return fraction_rounded_down(strategy.beta, inputs)
    if kind in _SELECTING:
        bounded: int = strategy.num_malicious_nodes
        return bounded
    return (inputs - 1) // 2 if kind in _OF_MAJORITIES else None


def _check_attackers(cfg: FederatedConfig, kind: str, attackers: int) -> None:
    """Refuse a rule that bounds fewer attackers than a round is expected to have.

    All of them answer, and of the others as few as the quorum lets a round go on with.
    """
    strategy: Any = cfg.strategy
    least = _least(cfg)
    inputs = _inputs(cfg, least)
    of = f"{attackers} of {inputs} {'clients' if cfg.bucket_size == 1 else 'buckets'} of a round"
    if least < cfg.clients_per_round:
        of += f" that federated.quorum={cfg.quorum:g} lets go on with {least} clients"
    problem = f"federated/attack={cfg.attack.name}: attackers are in {of}, "
    bounded = attackers_bounded(cfg)
    if bounded is None or attackers <= bounded:
        return
    if kind == "fedtrimmedavg":
        raise ConfigError(
            f"{problem}but {_KEY}.beta={strategy.beta} leaves out {bounded} at each end. "
            f"{_enough_beta(attackers, inputs)}"
        )
    if kind in _SELECTING:
        most = max(0, (inputs - _INPUTS_BESIDE) // _inputs_for_each(kind))
        remedy = (
            f"Set {_KEY}.num_malicious_nodes={attackers}, or lower federated.attack.attackers."
            if attackers <= most
            else f"It can bound {most} of {inputs} at most: lower federated.attack.attackers."
        )
        raise ConfigError(
            f"{problem}but {_KEY}.num_malicious_nodes={bounded} are bounded. {remedy}"
        )
    raise ConfigError(
        f"{problem}but federated/strategy={strategy.name} bounds less than half of them. Lower "
        f"federated.attack.attackers{'' if cfg.bucket_size == 1 else ' or bucket_size'}."
    )


def _inputs_for_each(kind: str) -> int:
    """Return how many inputs a rule that selects needs for each that is bad."""
    return 4 if kind == "bulyan" else 2


def _enough_beta(attackers: int, inputs: int) -> str:
    if 2 * attackers >= inputs:
        return "Lower federated.attack.attackers: less than half can be left out at each end."
    beta = -(-(10**4) * attackers // inputs) / 10**4
    return f"Set {_KEY}.beta={beta:g}, or lower federated.attack.attackers."


def _least(cfg: FederatedConfig) -> int:
    """Return with how many clients a round goes on, at least."""
    return max(1, fraction_rounded_up(cfg.quorum, cfg.clients_per_round))


def _inputs(cfg: FederatedConfig, clients: int) -> int:
    """Return how many inputs a rule has of so many clients."""
    return -(-clients // cfg.bucket_size)


def _check_clients(cfg: FederatedConfig, setting: str, needed: int) -> None:
    """Refuse a robust rule for which a round, or what the quorum leaves of it, is too small."""
    cohort, rule = cfg.clients_per_round, f"federated/strategy={cfg.strategy.name} with {setting}"
    buckets = "clients" if cfg.bucket_size == 1 else f"buckets of {cfg.bucket_size} clients"
    if _inputs(cfg, cohort) < needed:
        raise ConfigError(
            f"{rule} needs at least {needed} {buckets} a round, but federated.clients_per_round="
            f"{cohort}. Raise the one or change the other."
        )
    least = _least(cfg)
    if _inputs(cfg, least) < needed:
        raise ConfigError(
            f"{rule} needs at least {needed} {buckets} a round, but federated.quorum="
            f"{cfg.quorum:g} of {cohort} lets a round go on with {least}. Raise federated.quorum "
            "or federated.clients_per_round."
        )
