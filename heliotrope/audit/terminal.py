"""An audit in the terminal: a line or table for each part."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from heliotrope.audit.bound import Bound
from heliotrope.audit.findings import Findings

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
        say(
            f"promised: epsilon at most {promised['epsilon']:.4g} at delta "
            f"{promised['delta']:.3g}, for each {promised['unit']}"
        )
    if findings.bound is not None:
        say(_bound_line(findings.bound))
    if findings.mechanism is not None:
        table = Table("mechanism", "promised", "found", "", title_justify="left")
        for check in findings.mechanism:
            table.add_row(check.name, check.promised, check.measured, _MARKS[check.passed])
        console.print(table)
    for part, why in findings.left_out.items():
        say(f"not looked at: {part}: {why}")
    for alarm in findings.alarms:
        say(f"ALARM: {alarm}", "bold red")
    if not findings.alarms:
        say("nothing that was found contradicts what was promised")


def _bound_line(bound: Bound) -> str:
    best = max(bound.tried, key=lambda guesses: guesses.epsilon)
    return (
        f"measured: epsilon is at least {bound.epsilon:.4g}, at {bound.confidence:.0%} confidence: "
        f"{best.correct} of {best.guesses} guesses about {bound.canaries} canaries were right"
    )
