"""An audit in the terminal: a line or table for each part."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from heliotrope.audit.bound import Bound
from heliotrope.audit.findings import Findings
from heliotrope.audit.inversion import Inversion, Recovered

__all__ = ["tell"]

_MARKS = {True: "ok", False: "FAILED", None: "not seen"}


def tell(findings: Findings, console: Console) -> None:
    """Print what an audit found."""

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, highlight=False, markup=False)

    promised = findings.promised
    if promised is None:
        say("promised: nothing; the run was trained without protection")
    else:
        epsilon = promised["epsilon"]
        most = "unlimited" if epsilon is None else f"at most {epsilon:.4g}"
        say(
            f"promised: epsilon {most} at delta {promised['delta']:.3g}, for each "
            f"{promised['unit']}"
        )
    if findings.bound is not None:
        say(_bound_line(findings.bound))
    if findings.mechanism is not None:
        table = Table("mechanism", "promised", "found", "", title_justify="left")
        for check in findings.mechanism:
            table.add_row(check.name, check.promised, check.measured, _MARKS[check.passed])
        console.print(table)
    for attack in findings.membership.attacks if findings.membership else ():
        rates = ", ".join(
            f"{rate.found:.2%} found at {rate.false_positives:.1%} false" for rate in attack.rates
        )
        say(
            f"members by {attack.name}: AUC {attack.auc:.3f} ({attack.low:.3f} to "
            f"{attack.high:.3f}), {rates}"
        )
    for line in _inversion_lines(findings.inversions or ()):
        say(line)
    for part, why in findings.left_out.items():
        say(f"not looked at: {part}: {why}")
    for alarm in findings.alarms:
        say(f"ALARM: {alarm}", "bold red")
    if promised is not None and not findings.alarms:
        say("nothing that was found contradicts what was promised")


def _bound_line(bound: Bound) -> str:
    best = max(bound.tried, key=lambda guesses: guesses.epsilon)
    return (
        f"measured: epsilon is at least {bound.epsilon:.4g}, at {bound.confidence:.0%} confidence: "
        f"{best.correct} of {best.guesses} guesses about {bound.canaries} canaries were right"
    )


def _inversion_lines(inversions: Sequence[Inversion]) -> list[str]:
    """Return how near reconstructed examples come, in the median."""

    def middle(found: Sequence[Recovered]) -> str:
        psnr = sorted(recovered.psnr for recovered in found)[len(found) // 2]
        return "exactly" if math.isinf(psnr) else f"to {psnr:.0f} dB"

    plain = [inversion.plain for inversion in inversions]
    protected = [each.protected for each in inversions if each.protected is not None]
    if not plain:
        return []
    line = f"examples reconstructed from one step: {middle(plain)} without protection"
    return [line + (f", {middle(protected)} with it" if protected else "")]
