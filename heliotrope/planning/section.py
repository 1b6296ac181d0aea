"""What a mode's plan says: its settings, its lines and tables, and the curve that is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heliotrope.planning.network import Network

__all__ = ["Curve", "PlanSettings", "PlanTable", "Section"]


@dataclass(frozen=True)
class PlanSettings:
    """The keys below `plan.`: links of workers and of the server, and those of clients."""

    network: Network
    clients: Network


@dataclass(frozen=True)
class PlanTable:
    """A table: what it shows, the names of its columns, and its rows as they are printed."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Curve:
    """Seconds against a number of workers or clients, on two logarithmic scales.

    `parts` are the values by what takes the time, `marked` where more stop helping, if they do.
    """

    counted: str
    counts: Sequence[int]
    parts: Mapping[str, Sequence[float]]
    seconds: str
    marked: int | None


@dataclass(frozen=True)
class Section:
    """A mode's plan."""

    title: str
    lines: Sequence[str]
    tables: Sequence[PlanTable]
    curve: Curve
