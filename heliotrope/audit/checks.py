"""Checks of a noisy sum: what it is promised to be, and what it was found to be.

Each statistical check raises a false alarm with at most the probability that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FALSE_ALARM",
    "Check",
    "Noise",
    "check_denominator",
    "check_noise",
    "check_sensitivity",
]

FALSE_ALARM = 1e-6
"""Of all statistical checks of one audit together, that a faultless mechanism fails any."""

_ROUNDING = 1e-3  # relative: what sums in float32 may be off

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One property of the mechanism.

    Parameters
    ----------
    name
        Of the property.
    passed
        Whether it was found; None if it could not be looked at.
    promised, measured
        What was to be found, and what was, in words.
    """

    name: str
    passed: bool | None
    promised: str
    measured: str

    def told(self) -> dict[str, Any]:
        """Return what audit.json says."""
        return asdict(self)


def check_sensitivity(moves: Mapping[str, float], clip: float) -> Check:
    """Return whether no participant moves the sum by more than `clip`, and large ones reach it.

    Parameters
    ----------
    moves
        How far the sum moved, in the Euclidean norm, when a participant joined, by what that one
        sent. Those whose name begins with "huge" must have been longer than the clip before.
    """
    largest = max(moves, key=lambda name: moves[name])
    huge = [move for name, move in moves.items() if name.startswith("huge")]
    fits = all(move <= clip * (1 + _ROUNDING) for move in moves.values())
    tight = bool(huge) and min(huge) >= clip * (1 - 10 * _ROUNDING)
    measured = f"at most {moves[largest]:.6g} ({largest}), of {len(moves)} tried"
    if fits and not tight:
        measured += "; none of them was long enough to be clipped"
    return Check(
        "one participant moves the sum by no more than the clip",
        (True if tight else None) if fits else False,
        f"{clip:.6g}",
        measured,
    )


def check_denominator(found: Mapping[int, float], expected: float) -> Check:
    """Return whether the sum is divided by `expected`, whoever came.

    `found` are the denominators that were seen, by how many came.
    """
    alike = all(abs(value - expected) <= _ROUNDING * expected for value in found.values())
    seen = ", ".join(f"{value:.6g} with {came}" for came, value in found.items())
    return Check(
        "the sum is divided by a number that does not tell how many came",
        alike,
        f"{expected:g}",
        seen,
    )


@dataclass(frozen=True)
class Noise:
    """What was found on a sum to which nobody added anything, or something known.

    Parameters
    ----------
    name
        Of the setting, such as "3 workers".
    releases
        Of some releases with different noise, [R, D].
    """

    name: str
    releases: _Array


def check_noise(found: Sequence[Noise], deviation: float, false_alarm: float) -> list[Check]:
    """Return whether the noise has the promised deviation, is fresh each time, and drawn once.

    All settings begin with the same releases: the same noise is expected in each.
    """
    from scipy.stats import chi2, norm  # here: it takes a second to import

    first, *others = found
    checks, each = [], false_alarm / (2 * len(found) + 1)
    for noise in found:
        values = noise.releases.ravel()
        count = len(values)
        low, high = (math.sqrt(float(chi2.ppf(q, count)) / count) for q in (each / 2, 1 - each / 2))
        measured = math.sqrt(float(np.mean(values**2)))
        shift = float(values.mean()) * math.sqrt(count) / deviation
        centred = abs(shift) <= float(norm.isf(each / 2))
        within = low * deviation <= measured <= high * deviation
        checks.append(
            Check(
                f"standard deviation of the noise, {noise.name}",
                within and centred,
                f"{deviation:.6g}",
                f"{measured:.6g} over {count:,} numbers (accepted: {low * deviation:.6g} to "
                f"{high * deviation:.6g})" + ("" if centred else ", and not around 0"),
            )
        )
    checks.append(_fresh(first, each))
    if others:
        size = float(np.abs(first.releases).max()) or 1.0
        apart = [other.releases - first.releases[: len(other.releases)] for other in others]
        far = max(float(np.abs(each).max()) for each in apart) / size
        names = " and ".join(noise.name for noise in found)
        checks.append(
            Check(
                "the noise is drawn once a release, not once a worker",
                far <= _ROUNDING,
                f"the same numbers with {names}",
                "the same" if far <= _ROUNDING else f"{far:.2g} of the largest apart",
            )
        )
    return checks


def _fresh(noise: Noise, false_alarm: float) -> Check:
    """Return whether two releases have different noise: they are to be uncorrelated."""
    from scipy.stats import norm

    one, other = noise.releases[0], noise.releases[1]
    scale = float(np.linalg.norm(one) * np.linalg.norm(other)) or 1.0
    correlation = float(one @ other) / scale
    # Of independent Gaussian vectors; exact enough in the tails from some ten numbers on.
    most = min(1.0, float(norm.isf(false_alarm / 2)) / math.sqrt(max(1, len(one) - 2)))
    passed = abs(correlation) <= most if most < 1 else not np.array_equal(one, other)
    return Check(
        "each release has noise of its own",
        bool(passed),
        f"a correlation between -{most:.2g} and {most:.2g}",
        f"{correlation:.2g}",
    )
