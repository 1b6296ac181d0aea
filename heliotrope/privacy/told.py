"""What a user is told of a promise: in a line before training, and in result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heliotrope.privacy.accountant import Spent, epsilon
from heliotrope.privacy.accounts import Accounts
from heliotrope.privacy.keys import NoiseKeys
from heliotrope.privacy.mechanisms import GaussianMechanism
from heliotrope.privacy.secure_noise import SEEDED_SOURCE

__all__ = ["promise", "promise_to_each", "result", "result_of_each"]

_STATISTICS = (
    "means and deviations of the data were released with noise before training, and are charged; "
    "the bounds of their columns are public, and were not taken from the data"
)
_SHAPE = (
    "what the model's shape follows from is public: the columns and classes that there are, and "
    "how long inputs can be"
)


def promise(
    keys: NoiseKeys, mechanism: GaussianMechanism, spent: Spent, delta: float, end: str
) -> str:
    """Return the line: the noise, and what will be `spent` after `end`, such as "epoch 3"."""
    whole = epsilon(spent, delta)
    return (
        f"privacy: noise {mechanism.noise_multiplier:g} times {mechanism.noise_unit}; after {end} "
        f"epsilon {whole.value:.3g} at delta {delta:.3g} ({whole.accountant}; a {keys.unit}, "
        f"{mechanism.adjacency})"
    )


def result(
    keys: NoiseKeys,
    mechanism: GaussianMechanism,
    spent: Spent,
    delta: float,
    assumptions: Sequence[str],
    statistics: Spent = (),
) -> dict[str, Any]:
    """Return what result.json says of a run that has `spent` so much, with `statistics`."""
    whole = epsilon(spent, delta)
    told = [*assumptions, _SHAPE, *([_STATISTICS] if statistics else [])]
    return {
        "epsilon": whole.value,
        "delta": delta,
        **_conditions(keys, mechanism),
        "accountant": whole.accountant,
        "epsilon_rdp": whole.rdp,
        "noise_source": SEEDED_SOURCE,
        "assumptions": told,
        "clip": keys.clip,
        "noise_multiplier": mechanism.noise_multiplier,
        "releases": sum(count for _, count in spent),
        **({"statistics": _of_statistics(statistics, delta)} if statistics else {}),
    }


def _of_statistics(statistics: Spent, delta: float) -> dict[str, Any]:
    """Return what was released before training, and what that alone spends."""
    return {
        "epsilon": epsilon(statistics, delta).value,
        "noise_multiplier": min(mechanism.noise_multiplier for mechanism, _ in statistics),
        "releases": sum(count for _, count in statistics),
    }


def promise_to_each(
    keys: NoiseKeys, accounts: Accounts, rounds: Mapping[int, int], last: int, end: int
) -> str:
    """Return the line where each client has an account of its own.

    `rounds` are those that each client takes part in from now on, up to round `last`; by the
    config there are `end`.
    """
    each = {client: accounts.after(client, count) for client, count in rounds.items()}
    highest = max(each, key=lambda client: each[client].value)
    account, whole = accounts.accounts[highest], each[highest]
    noises = sorted({a.mechanism.noise_multiplier for a in accounts.accounts.values()})
    noise = " to ".join(f"{n:g}" for n in dict.fromkeys([noises[0], noises[-1]]))
    until = f" (no client's budget has room for round {last + 1})" if last < end else ""
    return (
        f"privacy: noise {noise} times the sensitivity; after round {last}{until} epsilon at most "
        f"{whole.value:.3g}, of client {account.name} at delta {account.delta:.3g} "
        f"({whole.accountant}; a {keys.unit}, {account.mechanism.adjacency})"
    )


def result_of_each(
    keys: NoiseKeys, accounts: Accounts, assumptions: Sequence[str]
) -> dict[str, Any]:
    """Return what result.json says where each client has an account of its own."""
    said = accounts.result()
    mechanism = next(iter(accounts.accounts.values())).mechanism
    return {
        "epsilon": said.pop("epsilon"),
        "delta": said.pop("delta"),
        **_conditions(keys, mechanism),
        "accountant": said.pop("accountant"),
        "epsilon_rdp": said.pop("epsilon_rdp"),
        "noise_source": SEEDED_SOURCE,
        "assumptions": [*assumptions, _SHAPE],
        "clip": keys.clip,
        **said,
    }


def _conditions(keys: NoiseKeys, mechanism: GaussianMechanism) -> dict[str, str]:
    return {
        "unit": keys.unit,
        "adjacency": mechanism.adjacency,
        "sampling": mechanism.sampling,
    }
