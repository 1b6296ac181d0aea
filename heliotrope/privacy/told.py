"""What a user is told of a promise: in a line before training, and in result.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heliotrope.privacy.accountant import Mechanism, Spent, epsilon
from heliotrope.privacy.keys import NoiseKeys

__all__ = ["promise", "result"]


def promise(keys: NoiseKeys, mechanism: Mechanism, spent: Spent, delta: float, end: str) -> str:
    """Return the line: the noise, and what will be `spent` after `end`, such as "epoch 3"."""
    whole = epsilon(spent, delta)
    return (
        f"privacy: noise {mechanism.noise_multiplier:g} times the sensitivity; after {end} epsilon "
        f"{whole.value:.3g} at delta {delta:.3g} ({whole.accountant}; a {keys.unit}, "
        f"{mechanism.adjacency})"
    )


def result(
    keys: NoiseKeys, mechanism: Mechanism, spent: Spent, delta: float, assumptions: Sequence[str]
) -> dict[str, Any]:
    """Return what result.json says of a run that has `spent` so much."""
    whole = epsilon(spent, delta)
    return {
        "epsilon": whole.value,
        "delta": delta,
        "unit": keys.unit,
        "adjacency": mechanism.adjacency,
        "sampling": mechanism.sampling,
        "accountant": whole.accountant,
        "epsilon_rdp": whole.rdp,
        "noise_source": "seeded generator (PCG64): a simulation, which repeats itself",
        "assumptions": list(assumptions),
        "clip": keys.clip,
        "noise_multiplier": mechanism.noise_multiplier,
        "releases": sum(count for _, count in spent),
    }
