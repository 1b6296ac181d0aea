"""What an audit found, as audit.json has it and as the page and the terminal tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from heliotrope.audit.bound import Bound
from heliotrope.audit.checks import FALSE_ALARM, Check
from heliotrope.audit.inversion import Inversion, Recovered
from heliotrope.audit.membership import Membership

__all__ = ["Findings"]


@dataclass(frozen=True)
class Findings:
    """What an audit of one run found; a part that was not looked at is None.

    Parameters
    ----------
    name, mode
        Of the run.
    promised
        What its result.json says of privacy; None if nothing was promised.
    canaries
        How many were planted; None if none were.
    bound, mechanism, membership, inversions
        See `heliotrope.audit`: bound, checks, membership, inversion.
    left_out
        What could not be looked at, and why, by part.
    """

    name: str
    mode: str
    promised: Mapping[str, Any] | None
    canaries: Mapping[str, Any] | None
    bound: Bound | None = None
    mechanism: Sequence[Check] | None = None
    membership: Membership | None = None
    inversions: Sequence[Inversion] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def alarms(self) -> list[str]:
        """What contradicts the promise, a sentence each."""
        found = [
            f"{check.name}: promised {check.promised}, found {check.measured}"
            for check in self.mechanism or ()
            if check.passed is False
        ]
        epsilon = None if self.promised is None else self.promised.get("epsilon")
        if self.bound is not None and epsilon is not None and self.bound.epsilon > epsilon:
            found.insert(
                0,
                f"epsilon is at least {self.bound.epsilon:.3g}, more than the {epsilon:.3g} that "
                "was promised",
            )
        return found

    def told(self) -> dict[str, Any]:
        """Return the content of audit.json."""
        checks = self.mechanism
        return {
            "schema": 1,
            "run": self.name,
            "mode": self.mode,
            "promised": self.promised,
            "canaries": self.canaries,
            "bound": None if self.bound is None else asdict(self.bound),
            "mechanism": None
            if checks is None
            else {"false_alarm": FALSE_ALARM, "checks": [check.told() for check in checks]},
            "membership": None if self.membership is None else asdict(self.membership),
            "inversion": None
            if self.inversions is None
            else [_told_of(each) for each in self.inversions],
            "left_out": dict(self.left_out),
            "alarms": self.alarms,
        }


def _told_of(inversion: Inversion) -> dict[str, Any]:
    """Return how near an attacker came; not what was seen, which is somebody's data."""

    def nearness(recovered: Recovered | None) -> dict[str, Any] | None:
        if recovered is None:
            return None
        return {"psnr": recovered.psnr, "ssim": recovered.ssim}

    plain, protected = nearness(inversion.plain), nearness(inversion.protected)
    return {"method": inversion.method, "plain": plain, "protected": protected}
