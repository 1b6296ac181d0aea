"""Epsilon of a sequence of Gaussian mechanisms, by Google's `dp-accounting`.

The privacy loss distribution (PLD; Doroshenko et al. 2022, arXiv:2207.04380) is tight, Renyi
differential privacy (RDP; Mironov 2017, arXiv:1702.07476) is an upper bound beside it. Both are
upper bounds on what an adversary learns who sees all that was released.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from heliotrope.errors import ConfigError
from heliotrope.privacy.mechanisms import GaussianMechanism, Mechanism, Sampling

__all__ = [
    "Epsilon",
    "Mechanism",
    "RunningBound",
    "Sampling",
    "Spent",
    "epsilon",
    "epsilon_of_best",
    "noise_for",
    "rounds_within",
]

_NEWEST, _OLDEST = (1, 0), (0, 6)  # of dp-accounting; before 0.6 PLD knows no replaced participant
_UNIT = 1e-4  # of noise multipliers that are found
_STEP, _LARGE_STEP = 1e-4, 1e-3  # of privacy losses in PLD's tables: of results, and of a search
_TIGHT_TARGET = 30.0  # up to which noise is found by PLD: 10 s at 8, minutes at 100, then no memory
_PLD_UP_TO = 500.0  # epsilon by RDP: of a larger one PLD's tables would take gigabytes


Spent = Sequence[tuple[GaussianMechanism, int]]
"""Mechanisms of one adjacency, and how often each was used."""

_Used = tuple[tuple[GaussianMechanism, int], ...]


@dataclass(frozen=True)
class Epsilon:
    """What was spent at a given delta.

    Parameters
    ----------
    value
        By the tightest accountant that there is for all mechanisms.
    accountant
        Its name: PLD or RDP.
    rdp
        By RDP, at least `value`.
    """

    value: float
    accountant: Literal["PLD", "RDP"]
    rdp: float


def epsilon(spent: Spent, delta: float) -> Epsilon:
    """Return the epsilon of all that was spent together, at `delta`.

    Without noise it is infinite. Raises `ValueError` if mechanisms differ in their adjacency.
    """
    return _epsilon(_used(spent), delta)


def epsilon_of_best(spent: Spent, selection: str, mean: float, delta: float) -> float:
    """Return a bound on the epsilon of releasing the best of some trials alone, by RDP.

    (Papernot and Steinke 2022, arXiv:2110.03620.)

    Parameters
    ----------
    spent
        By each trial, at most.
    selection, mean
        What their number was drawn from, `geometric` (theorem 2) or `poisson` (theorem 6), and its
        expectation, at least 1.
    delta
        At which epsilon holds.
    """
    dp, *_ = _accounting()
    shape = 1.0 if selection == "geometric" else math.inf
    best = dp.dp_event.RepeatAndSelectDpEvent(_composed(dp, spent), mean, shape)
    with _quiet():
        return float(_bounding(spent[0][0]).compose(best).get_epsilon(delta))


@lru_cache(maxsize=256)
def noise_for(
    mechanism: GaussianMechanism,
    rounds: int,
    delta: float,
    target_epsilon: float,
    before: _Used = (),
    *,
    rough: bool = False,
) -> float:
    """Return the least noise multiplier with which `rounds` stay within `target_epsilon`.

    To 4 decimals, rounded up; that of `mechanism` does not matter. For targets above 30 it is the
    least by RDP, which takes no minutes and is a little more. `before` is what is spent beside the
    rounds. If `rough`, it is found to 2 decimals, in a fraction of the time. Raises `ConfigError`,
    whose message begins with target_epsilon, if no noise suffices.
    """
    from scipy.optimize import brentq  # here: it takes a second to import

    dp, *_ = _accounting()
    unit = 0.01 if rough else _UNIT
    unreachable = ConfigError(
        f"target_epsilon={target_epsilon:g} is less than any noise leaves of {rounds} releases "
        f"at delta={delta:g}. Raise it, or train for less long."
    )

    def event(noise: float) -> Any:
        return _composed(dp, [(replace(mechanism, noise_multiplier=noise), rounds), *before])

    def narrowed(interval: float, enough: float, factor: float) -> float:
        """Return the least noise by PLD in steps of `interval`, of which `enough` is no less."""

        @lru_cache
        def excess(noise: float) -> float:
            spent = _tight(mechanism, interval).compose(event(noise))
            return float(spent.get_epsilon(delta)) - target_epsilon

        if excess(enough) > 0:  # of tiny losses the steps are larger than they are
            if interval > _STEP:
                return enough
            raise unreachable
        lower = factor * enough
        while excess(lower) <= 0:
            factor *= factor
            lower *= factor
        found: float = brentq(excess, lower, enough, xtol=unit / 2)
        return found if excess(found) <= 0 else min(found + unit / 2, enough)

    try:
        with _quiet():
            noise: float = dp.calibrate_dp_mechanism(
                lambda: _bounding(mechanism), event, target_epsilon, delta, tol=unit / 2
            )
            if mechanism.sampling != "fixed" and target_epsilon <= _TIGHT_TARGET:
                # RDP takes milliseconds for each try, PLD in larger steps a tenth of PLD.
                noise = narrowed(_LARGE_STEP, noise, 0.6)
                if not rough:
                    noise = narrowed(_STEP, noise, 0.998)
    except dp.mechanism_calibration.NoBracketIntervalFoundError as error:
        raise unreachable from error
    return round(math.ceil(noise / unit) * unit, 4)


def rounds_within(
    mechanism: GaussianMechanism, most: int, delta: float, budget: float, before: Spent = ()
) -> int:
    """Return how many rounds, at most `most`, stay within the `budget` after what is spent."""

    def too_many(rounds: int) -> bool:
        return _tightest(_used((*before, (mechanism, rounds))), delta)[0] > budget

    if not too_many(most):
        return most
    # RDP takes milliseconds and bounds from above: what fits by it is nearly all that does.
    bound = RunningBound(mechanism, delta, before)
    fits = _last_fitting(0, most, lambda rounds: bound.after(rounds) > budget)
    if fits and too_many(fits):
        return _last_fitting(0, fits, too_many)
    step = 1 + fits // 8
    while fits + step < most and not too_many(fits + step):
        fits, step = fits + step, 2 * step
    return _last_fitting(fits, min(fits + step, most), too_many)


def _last_fitting(low: int, high: int, too_many: Callable[[int], bool]) -> int:
    """Return the last number that is not too many, from `low`, which is not, to below `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if too_many(middle) else (middle, high)
    return low


class RunningBound:
    """An upper bound on epsilon after each further use of a mechanism, quickly: by RDP.

    Parameters
    ----------
    mechanism
        That is used from now on.
    delta
        Of all that is told.
    before
        What is spent already.
    """

    def __init__(self, mechanism: GaussianMechanism, delta: float, before: Spent = ()) -> None:
        self._mechanism, self._delta, self._spent = mechanism, delta, before
        self._noisy = all(m.noise_multiplier > 0 for m, _ in (*before, (mechanism, 1)))
        self._linear = isinstance(mechanism, Mechanism)  # each use adds the same
        if not (self._noisy and self._linear):
            return
        dp, _, rdp = _accounting()
        self._to_epsilon = rdp.rdp_privacy_accountant.compute_epsilon
        once, earlier = ([(mechanism, 1)], list(before))
        with _quiet():
            ours, theirs = (
                _bounding(mechanism).compose(_composed(dp, spent)) for spent in (once, earlier)
            )
        # There is no public way to its orders, of which a round's are computed in 50 ms.
        self._orders, self._each, self._before = ours._orders, ours._rdp, theirs._rdp  # noqa: SLF001

    def after(self, rounds: int) -> float:
        """Return the bound after `rounds` uses."""
        if not self._noisy:
            return math.inf
        if not self._linear:
            return _bound((*self._spent, (self._mechanism, rounds)), self._delta)
        # Of some orders the divergence is infinite, and 0 of these is still nothing.
        spent = rounds * self._each + self._before if rounds else self._before
        return float(self._to_epsilon(self._orders, spent, self._delta)[0])


def _bound(spent: Spent, delta: float) -> float:
    """Return the epsilon of all that was spent, by RDP."""
    with _quiet():
        bound = _bounding(spent[0][0])
        return float(bound.compose(_composed(_accounting()[0], spent)).get_epsilon(delta))


def _used(spent: Spent) -> _Used:
    return tuple((mechanism, count) for mechanism, count in spent if count)


@lru_cache(maxsize=1024)
def _tightest(used: _Used, delta: float) -> tuple[float, Literal["PLD", "RDP"]]:
    """Return epsilon by the tightest accountant, and its name."""
    if not used:
        return 0.0, "PLD"
    if any(mechanism.noise_multiplier == 0 for mechanism, _ in used):
        return math.inf, "PLD"
    kinds = {mechanism.adjacency for mechanism, _ in used}
    if len(kinds) > 1:
        raise ValueError(f"no accountant composes {' with '.join(sorted(kinds))}")
    upper, first = _bound(used, delta), used[0][0]
    if first.sampling == "fixed" or upper > _PLD_UP_TO:
        return upper, "RDP"
    with _quiet():
        best = _tight(first, _STEP).compose(_composed(_accounting()[0], used))
        return float(best.get_epsilon(delta)), "PLD"


@lru_cache(maxsize=1024)
def _epsilon(used: _Used, delta: float) -> Epsilon:
    value, accountant = _tightest(used, delta)
    if accountant == "RDP" or not used or math.isinf(value):
        return Epsilon(value, accountant, value)
    return Epsilon(value, accountant, _bound(used, delta))


def _bounding(mechanism: GaussianMechanism) -> Any:
    """Return an accountant by RDP that knows the mechanism's adjacency and sampling.

    A Gaussian without sampling is in units of how far neighbours' results are apart, whatever
    neighbours are; accountants take it for one of an added participant.
    """
    *_, rdp = _accounting()
    return rdp.RdpAccountant(neighboring_relation=_relation(mechanism))


def _tight(mechanism: GaussianMechanism, interval: float) -> Any:
    """Return one by PLD, an upper bound in steps of `interval`; not of cohorts of fixed size."""
    _, pld, _ = _accounting()
    return pld.PLDAccountant(_relation(mechanism), interval)


def _relation(mechanism: GaussianMechanism) -> Any:
    one = _accounting()[0].NeighboringRelation
    return one.REPLACE_ONE if mechanism.sampling == "fixed" else one.ADD_OR_REMOVE_ONE


def _composed(dp: Any, spent: Spent) -> Any:
    """Return one event of all; of a mechanism, all uses together, which may be less than each."""
    uses: Counter[GaussianMechanism] = Counter()
    for mechanism, count in spent:
        uses[mechanism] += count
    return dp.ComposedDpEvent([each.event(dp, count) for each, count in uses.items() if count])


def _accounting() -> tuple[Any, Any, Any]:
    """Import dp-accounting; beside a newer attrs, pip silently installs its first version."""
    remedy = "pip install 'dp-accounting>=0.6,<1' 'attrs>=22,<24'"
    try:
        found = version("dp-accounting")
    except PackageNotFoundError as error:
        raise ConfigError(f"Privacy is accounted for by dp-accounting: {remedy}.") from error
    parts = tuple(int(part) for part in found.split(".")[:2])
    if not _OLDEST <= parts < _NEWEST:
        raise ConfigError(f"dp-accounting {found} is not 0.6 or a later 0.x: {remedy}.")
    import dp_accounting
    from dp_accounting import pld, rdp

    return dp_accounting, pld, rdp


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to oneself that RDP leaves out orders, which only makes its bound larger.

    Where the root logger has no handler, absl gives it one for standard error, which would from
    then on show all that anybody logs: it is given one that drops everything meanwhile.
    """
    logger, root, nothing = logging.getLogger("absl"), logging.getLogger(), logging.NullHandler()
    before = logger.level
    logger.setLevel(logging.ERROR)
    root.addHandler(nothing)
    try:
        yield
    finally:
        root.removeHandler(nothing)
        logger.setLevel(before)
