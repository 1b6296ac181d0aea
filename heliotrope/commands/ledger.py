"""`privacy ledger=FILE`: who spent what of a project's privacy."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.table import Table
from rich.text import Text

from heliotrope.commands.arguments import keys_and_values
from heliotrope.config.project import ProjectConfig
from heliotrope.errors import ConfigError, LedgerError
from heliotrope.privacy.accountant import Epsilon
from heliotrope.privacy.mechanisms import GaussianMechanism
from heliotrope.privacy.project import Budget, Entry, ProjectLedger
from heliotrope.privacy.totals import Group, groups, sweeps_of
from heliotrope.system.console import plain_console

__all__ = ["show_ledger", "spent_by"]


def show_ledger(arguments: Sequence[str]) -> None:
    """Print what runs have spent, by run and by purpose, together, and what is left.

    `arguments` are ledger=FILE, and budget and delta if they are not to be the runs' own.
    """
    cfg = _parsed(arguments)
    assert cfg.ledger is not None
    found = groups(ProjectLedger(Path(cfg.ledger)).entries())
    if not found:
        raise LedgerError(
            f"ledger={cfg.ledger} has no entry: nothing was charged there yet. Runs with "
            f"privacy.ledger={cfg.ledger} are."
        )
    console = plain_console()
    for group in found:
        delta = group.delta if cfg.delta is None else cfg.delta
        for part in (_runs(group, delta), _purposes(group, delta)):
            console.print(part)
        for each in sweeps_of(group, delta):
            console.print(each.line)
        limit = group.budget if cfg.budget is None else Budget(cfg.budget, delta)
        console.print(f"{_total(group, delta, limit)}\n")
    if len(found) > len({tuple(group.sources) for group in found}):
        console.print(
            "Runs on the same data are in several tables: of another unit or adjacency, which no "
            "accountant composes. Each total holds by itself; nothing tells what they are together."
        )


def spent_by(ledger: Path, sweep: Path) -> list[str]:
    """Return what a user is told of the trials of a sweep, of the last ledger that it named."""
    try:
        found = groups(ProjectLedger(ledger).entries())
    except LedgerError:  # such as of a sweep whose trials were all refused
        return []
    return [
        f"privacy: {each.line}, at delta {group.delta:.3g}"
        for group in found
        for each in sweeps_of(group, group.delta)
        if each.sweep.directory == str(sweep)
    ]


def _parsed(arguments: Sequence[str]) -> ProjectConfig:
    file = "FILE, the one that runs have as privacy.ledger"
    given = keys_and_values(arguments, "privacy", ("ledger", "budget", "delta"), {"ledger": file})
    if not given["ledger"]:
        raise ConfigError("ledger= names no file. Name the one that runs have as privacy.ledger.")
    numbers: dict[str, float] = {}
    for key in ("budget", "delta"):
        if key in given:
            try:
                numbers[key] = float(given[key])
            except ValueError as error:
                raise ConfigError(f"{key}={given[key]} is not a number.") from error
            if not (numbers[key] > 0 and (key == "budget" or numbers[key] <= 1)):
                raise ConfigError(f"{key}={given[key]} must be above 0, and a delta at most 1.")
    return ProjectConfig(given["ledger"], numbers.get("budget"), numbers.get("delta"))


def _runs(group: Group, delta: float) -> Table:
    names = " and ".join(group.sources)
    kind = " and ".join(sorted(group.adjacencies))
    title = Text(f"data {names}: a {group.unit} ({kind}), at delta {delta:.3g}")
    table = Table(
        "written", "run", "experiment", "mechanism", "releases", "epsilon", "", title=title
    )
    table.title_justify = "left"
    for entry in group.entries:
        when = datetime.fromtimestamp(entry.time).astimezone()
        table.add_row(
            f"{when:%Y-%m-%d %H:%M}",
            Text(_shown(entry.directory)),
            Text(f"{entry.mode} {entry.name}"),
            "\n".join(_mechanism(mechanism) for mechanism, _ in entry.spent),
            "\n".join(f"{count:,}" for _, count in entry.spent),
            _number(group.epsilon(delta, [entry])),
            "" if entry.ended else "reserved",
        )
    return table


def _purposes(group: Group, delta: float) -> Table:
    table = Table("purpose", "runs", "releases", "epsilon")
    for purpose in dict.fromkeys(entry.purpose for entry in group.entries):
        entries = [entry for entry in group.entries if entry.purpose == purpose]
        table.add_row(
            purpose,
            f"{len(entries):,}",
            f"{_releases(entries):,}",
            _number(group.epsilon(delta, entries)),
        )
    return table


def _total(group: Group, delta: float, limit: Budget | None) -> str:
    whole = group.epsilon(delta)
    if whole is None:
        return "no total: no accountant composes these"
    bound = "" if whole.accountant == "RDP" else f", at most {whole.rdp:.4g} by RDP"
    text = (
        f"all {len(group.entries)} together: epsilon {whole.value:.4g} at delta {delta:.3g} "
        f"({whole.accountant}{bound})"
    )
    if limit is None:
        return f"{text}; no budget is set"
    left = limit.epsilon - whole.value
    state = f"{left:.4g} left" if left > 0 else "nothing left"
    return f"{text}; of the budget of {limit.epsilon:g}, {state}"


def _releases(entries: Sequence[Entry]) -> int:
    return sum(count for entry in entries for _, count in entry.spent)


def _mechanism(mechanism: GaussianMechanism) -> str:
    return (
        f"{mechanism.sampling} {mechanism.cohort:,} of {mechanism.population:,}, noise "
        f"{mechanism.noise_multiplier:g}"
    )


def _number(found: Epsilon | None) -> str:
    return "?" if found is None else f"{found.value:.4g}"


def _shown(directory: str) -> str:
    """Return a directory as it is reached from here, if it is below."""
    path = Path(directory)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else directory
