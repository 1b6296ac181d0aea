"""audit.html: an audit as a page that a data-protection officer can read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from heliotrope import __version__
from heliotrope.audit.checks import FALSE_ALARM
from heliotrope.audit.findings import Findings
from heliotrope.audit.inversion import Inversion, Recovered
from heliotrope.audit.membership import Attack
from heliotrope.audit.pictures import as_picture, is_picture
from heliotrope.report.templates import filled, resource

__all__ = ["render"]

_NUMBERS = 12  # of an input that is no picture, that are shown
_SEEN = 20.0  # decibels from which on a picture is recognised


def render(findings: Findings, columns: Sequence[str] = ()) -> str:
    """Return the page: HTML that needs no other file.

    `columns` are the names of the numbers of an input that is a row of a table.
    """
    promised = findings.promised
    return filled(
        "audit/audit.html.j2",
        style=resource("report/report.css"),
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        findings=findings,
        promised=promised,
        believed=None if promised is None else _believed(promised.get("epsilon")),
        attacks=[_attack(a) for a in findings.membership.attacks] if findings.membership else [],
        inversions=[_inversion(each, columns) for each in findings.inversions or ()],
        verdict=_verdict(findings),
        seen=_SEEN,
        false_alarm=f"1 in {1 / FALSE_ALARM:,.0f}",
        cards=_cards(findings),
    )


def _believed(epsilon: float | None) -> str | None:
    """Return how sure somebody can become, from 50 %, that one took part: e^eps / (1 + e^eps)."""
    if epsilon is None or not math.isfinite(epsilon):
        return None
    share = 1 / (1 + math.exp(-epsilon))
    return f"{share:.1%}" if share < 0.9995 else "nearly 100 %"


def _cards(findings: Findings) -> list[tuple[str, str, str]]:
    """Return what stands at the top: what it is, the figure, and a line of what it means."""
    promised, bound, checks = findings.promised, findings.bound, findings.mechanism
    cards = []
    if promised is None:
        cards.append(("promised", "nothing", "the run was trained without protection"))
    else:
        figure = f"ε ≤ {promised['epsilon']:.3g}" if promised.get("epsilon") is not None else "∞"
        cards.append(("promised", figure, f"for each {promised['unit']}"))
    if bound is not None:
        text = f"at {bound.confidence:.0%} confidence, from {bound.canaries:,} canaries"
        cards.append(("measured", f"ε ≥ {bound.epsilon:.3g}", text))
    if checks is not None:
        passed = sum(check.passed is True for check in checks)
        cards.append(("mechanism", f"{passed} of {len(checks)}", "checks passed"))
    if findings.membership is not None:
        best = max(findings.membership.attacks, key=lambda attack: attack.auc)
        cards.append(("members told apart", f"{best.auc:.3f}", f"AUC of {best.name}; 0.5 is luck"))
    return cards


def _verdict(findings: Findings) -> str:
    """Return what the membership attacks mean for those whose data was used."""
    attacks = findings.membership.attacks if findings.membership else ()
    better = [attack for attack in attacks if attack.low > 0.5]
    if not better:
        return (
            "These attacks did not tell training examples from others better than by guessing. "
            "That is no proof that nobody can: other attacks, or more examples, might."
        )
    best = max(better, key=lambda attack: attack.auc)
    rate = best.rates[-1]
    return (
        "The model tells of the data that it was trained on. Given one training example and one "
        f"other, the best attack ({best.name}) takes the right one in {best.auc:.1%} of all cases "
        f"({best.low:.1%} to {best.high:.1%} at 95 % confidence), where guessing does in 50 %. "
        f"With at most {rate.false_positives:.0%} of the others taken for training examples, it "
        f"finds {rate.found:.1%} of these ({rate.low:.1%} to {rate.high:.1%})."
    )


def _attack(attack: Attack) -> dict[str, Any]:
    def rate(index: int) -> str:
        found = attack.rates[index]
        return f"{found.found:.2%} ({found.low:.2%} to {found.high:.2%})"

    return {
        "name": attack.name,
        "auc": f"{attack.auc:.3f} ({attack.low:.3f} to {attack.high:.3f})",
        "rates": [rate(index) for index in range(len(attack.rates))],
        "counts": f"{attack.members:,} members, {attack.others:,} others",
        "allowed": [found.allowed for found in attack.rates],
    }


def _inversion(inversion: Inversion, columns: Sequence[str]) -> dict[str, Any]:
    picture = is_picture(inversion.original)
    shown = [("the example", inversion.original, "")]
    shown.append(("from an unprotected step", inversion.plain.values, _nearness(inversion.plain)))
    if inversion.protected is not None:
        near = _nearness(inversion.protected)
        shown.append(("from a protected step", inversion.protected.values, near))
    if picture:
        drawn = [(what, as_picture(v, inversion.original), near) for what, v, near in shown]
        return {"pictures": drawn, "rows": []}
    flat = [(what, values.reshape(-1)[:_NUMBERS].tolist(), near) for what, values, near in shown]
    numbered = [str(number + 1) for number in range(len(flat[0][1]))]
    names = list(columns[: len(numbered)]) if len(columns) >= len(numbered) else numbered
    rows = [[name, *(f"{line[1][n]:.3g}" for line in flat)] for n, name in enumerate(names)]
    return {"pictures": [], "rows": rows, "head": ["", *(what for what, _, _ in flat)]}


def _nearness(recovered: Recovered) -> str:
    psnr = "exact" if math.isinf(recovered.psnr) else f"{recovered.psnr:.0f} dB"
    return psnr if recovered.ssim is None else f"{psnr}, likeness {recovered.ssim:.2f}"
