"""What sets runs apart: their labels, and the keys in which their configs differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from heliotrope.report.record import RunRecord

__all__ = [
    "Difference",
    "differences",
    "flatten",
    "labels",
    "shared_name",
    "short_key",
    "telling",
]

NOT_SET = "not set"

# (key, one value a run)
Difference = tuple[str, list[str]]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return `{"optimizer.lr": "0.1", ...}`: nested mappings flattened, values as text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = _value_text(value)
    return flat


def differences(runs: Sequence[RunRecord]) -> list[Difference]:
    """Return the config keys whose values are not the same in all runs, sorted by key."""
    flats = [flatten(run.config) for run in runs]
    keys = sorted({key for flat in flats for key in flat})
    rows = [(key, [flat.get(key, NOT_SET) for flat in flats]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def telling(rows: Sequence[Difference]) -> list[Difference]:
    """Return the differences without those that follow from the choice of another name.

    Whether a run was interrupted on its way, and resumed, is none that tells.
    """
    named = ("resume", *(key.removesuffix("name") for key, _ in rows if key.endswith(".name")))
    return [row for row in rows if row[0].endswith(".name") or not row[0].startswith(named)]


def labels(runs: Sequence[RunRecord]) -> list[str]:
    """Return one short label a run, all distinct.

    The name, where it is enough; then the mode, the settings that differ between the runs of
    one name, the directory and, as the last resort, a number. A name that all runs share tells
    none apart and is left to the title.
    """
    shared = len(runs) > 1 and shared_name(runs) is not None
    named = ["" if shared else _shorten(run.name, 48) for run in runs]
    settings = _settings_apart(runs)
    steps: list[Callable[[int], str]] = [
        lambda i: runs[i].mode,
        lambda i: settings[i],
        lambda i: runs[i].directory.name,
        lambda i: f"#{i + 1}",
    ]
    for step in steps:
        groups = _collisions(named)
        if not groups:
            break
        for group in groups:
            if len({step(i) for i in group}) > 1:
                for i in group:
                    named[i] = " · ".join(part for part in (named[i], step(i)) if part)
    return named


def shared_name(runs: Sequence[RunRecord]) -> str | None:
    """Return the experiment's name if all runs have the same, else None."""
    names = {run.name for run in runs}
    return _shorten(names.pop(), 80) if len(names) == 1 else None


def _collisions(named: Sequence[str]) -> list[list[int]]:
    counts = Counter(named)
    repeated = [label for label in counts if counts[label] > 1]
    return [[i for i, label in enumerate(named) if label == wanted] for wanted in repeated]


def _settings_apart(runs: Sequence[RunRecord], most: int = 3) -> list[str]:
    """Return `lr=0.1, seed=2` a run: what differs among runs of its name and mode, if short."""
    texts = [""] * len(runs)
    for group in _collisions([f"{run.name}\0{run.mode}" for run in runs]):
        rows = telling(differences([runs[i] for i in group]))
        if len(rows) > most:
            continue
        for position, i in enumerate(group):
            parts = (f"{short_key(key)}={_shorten(values[position], 20)}" for key, values in rows)
            texts[i] = ", ".join(parts)
    return texts


def short_key(key: str) -> str:
    """Return the part of a key that is mostly enough: `lr`, `strategy` of `...strategy.name`."""
    return key.removesuffix(".name").rsplit(".", 1)[-1]


def _shorten(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _value_text(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
