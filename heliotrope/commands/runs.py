"""`runs`: those below a directory with their states; two of them compared; some removed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from heliotrope.commands.arguments import keys_and_values
from heliotrope.commands.conditions import parse_condition
from heliotrope.commands.output import aligned, say
from heliotrope.commands.removal import kept_because, remove_run
from heliotrope.errors import ConfigError, closest
from heliotrope.report import RunRecord, read_run
from heliotrope.report.compare import NOT_SET, flatten
from heliotrope.report.record import number
from heliotrope.report.summary import order_metrics
from heliotrope.report.units import age_text, metric_text
from heliotrope.runs.changed_keys import as_typed, changed_keys
from heliotrope.runs.config_values import MISSING
from heliotrope.runs.finding import FoundRun, find_runs
from heliotrope.shell import typed

__all__ = ["runs_command"]

_FIELDS = ("state", "mode", "experiment", "age")
_DEFAULT = Path("runs")  # where the modes put them


def runs_command(arguments: Sequence[str]) -> None:
    """`[DIR] [where=CONDITION] [sort=KEY]`, `diff A B`, or `rm [DIR] where=CONDITION`.

    Lists the runs below DIR (runs/ if none is given): state, mode, experiment, main metric, age
    and what sets it apart, the newest first: the overrides that it was started with, or, where
    its directory does not hold them, the keys in which runs of one experiment differ. `diff` shows
    in which keys, versions and metrics two runs differ. `rm` lists what it would remove, and
    removes it once that is confirmed: never a run that is running, nor what is no run.

    Keys::

        where='test/accuracy>0.9 and mode=federated'   of state, mode, experiment, age (seconds),
                                   metrics, keys of result.json and of the configuration;
                                   with = != < <= > >= and, or, ( )
        sort=wall_seconds          by one of these, the smallest first; sort=-KEY: the largest
        confirm=true               of rm: remove without asking
    """
    verb, *rest = arguments or [""]
    if verb == "diff":
        _diff(rest)
    elif verb == "rm":
        _remove(rest)
    else:
        root, given = _parsed(arguments, ("where", "sort"))
        found = _selected(_below(root), given)
        for line in _lines(found, root):
            say(line)
        if not found:
            say(f"no runs {'where that holds ' if 'where' in given else ''}below {_plain(root)}")


def _parsed(arguments: Sequence[str], keys: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """Return DIR and what was given as key=value."""
    directories = [word for word in arguments if word.partition("=")[0] not in keys]
    if len(directories) > 1 or any("=" in d and not Path(d).exists() for d in directories):
        wrong = directories[-1]
        raise ConfigError(
            f"runs takes one DIR and key=value with the keys {', '.join(keys)}, not '{wrong}'."
            f"{closest(wrong.partition('=')[0], [*keys, 'diff', 'rm'])}"
        )
    others = [word for word in arguments if word not in directories]
    root = Path(directories[0]) if directories else _DEFAULT
    return root, keys_and_values(others, "runs", keys, {})


def _below(root: Path) -> list[FoundRun]:
    """Return what lies below `root`; nothing does where no run was ever begun."""
    return [] if root == _DEFAULT and not root.exists() else find_runs(root)


def _selected(found: list[FoundRun], given: Mapping[str, str]) -> list[FoundRun]:
    """Return those that `where` holds for, in the order of `sort`."""
    if "where" in given:
        condition = parse_condition(given["where"])
        _refuse_unknown(condition.names, found, "where")
        found = [run for run in found if condition.holds(run.value)]
    if "sort" in given:
        key = given["sort"].removeprefix("-")
        _refuse_unknown([key], found, "sort")
        found = _sorted(found, key, descending=given["sort"].startswith("-"))
    return found


def _sorted(found: Sequence[FoundRun], key: str, *, descending: bool) -> list[FoundRun]:
    """Return runs by a value: numbers, then texts, and last those without it."""
    values = [(run, run.value(key)) for run in found]
    numbers = [(run, x) for run, v in values if (x := number(v)) is not None and x == x]
    numbered = {id(run) for run, _ in numbers}
    texts = [(r, as_typed(v)) for r, v in values if isinstance(v, str | bool)]
    rest = [r for r, v in values if not isinstance(v, str | bool) and id(r) not in numbered]
    numbers.sort(key=lambda pair: pair[1], reverse=descending)
    texts.sort(key=lambda pair: pair[1], reverse=descending)
    return [*(run for run, _ in numbers), *(run for run, _ in texts), *rest]


def _refuse_unknown(names: Iterable[str], found: Sequence[FoundRun], key: str) -> None:
    """Raise `ConfigError` for a name that no run has a value of."""
    for name in names:
        if found and all(run.value(name) is MISSING for run in found):
            known = {*_FIELDS, *(metric for run in found for metric in run.metrics)}
            known |= {key for run in found for key in flatten(run.result)}
            known |= {key for run in found[:100] for key in flatten(run.config)}
            raise ConfigError(
                f"{key}: no run here has {name}. Name one of {', '.join(_FIELDS)}, a metric, or a "
                f"key of result.json or config.yaml.{closest(name, known)}"
            )


def _lines(found: Sequence[FoundRun], root: Path) -> list[str]:
    """Return a table, a line a run."""
    if not found:
        return []
    changed = changed_keys(found)
    heads = ("run", "state", "mode", "experiment", "metric", "age", "changed")
    rows = [
        (
            _plain(run.path.relative_to(root) if run.path != root else root),
            _plain(run.state),
            _plain(run.mode),
            _plain(run.experiment),
            _metric(run),
            age_text(run.age),
            _plain(run.note or changed.get(id(run), "")),
        )
        for run in found
    ]
    return [line.removeprefix("  ") for line in aligned([heads, *rows])]


def _metric(run: FoundRun) -> str:
    name = run.metric
    if name is None:
        return ""
    value = number(run.metrics[name])
    return _plain(f"{name} {metric_text(math.nan if value is None else value)}")


def _plain(text: object) -> str:
    """Return a name without what would steer a terminal, or break a line."""
    name = str(text)
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def _diff(arguments: Sequence[str]) -> None:
    """Print in which keys, versions and metrics two runs differ."""
    if len(arguments) != 2:
        raise ConfigError("runs diff needs two run directories: runs diff A B.")
    runs = [read_run(Path(word)) for word in arguments]
    parts: tuple[tuple[str, Callable[[RunRecord], dict[str, str]]], ...] = (
        ("configuration", lambda run: flatten(run.config)),
        ("versions", lambda run: flatten(run.detail("versions") or {})),
        ("metrics", lambda run: {k: metric_text(v) for k, v in run.metrics.items()}),
    )
    for title, values_of in parts:
        first, second = (values_of(run) for run in runs)
        keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
        keys = order_metrics(keys) if title == "metrics" else sorted(keys)
        rows = [(_plain(k), *(_plain(v.get(k, NOT_SET)) for v in (first, second))) for k in keys]
        heads = (title, *(_plain(word) for word in arguments))
        for line in aligned([heads, *rows]) if rows else [f"  {title}: no difference"]:
            say(line.removeprefix("  "))
        say("")


def _remove(arguments: Sequence[str]) -> None:
    """List the runs that a condition holds for, and remove them once that is confirmed."""
    root, given = _parsed(arguments, ("where", "sort", "confirm"))
    if root.is_symlink():
        raise ConfigError(f"{root} is a link, and rm follows none. Name the directory itself.")
    if given.get("confirm", "false") not in ("true", "false"):
        raise ConfigError(f"confirm={given['confirm']} is neither true nor false.")
    everything = _below(root)
    if "where" not in given and not any(run.path == root for run in everything):
        raise ConfigError(
            f"runs rm needs where=CONDITION, or the directory of one run, not of many: {root}. "
            "Write such as runs rm where='state=failed'."
        )
    chosen = everything if "where" in given else [r for r in everything if r.path == root]
    chosen = _selected(chosen, given)
    kept = {id(run): kept_because(run, everything) for run in chosen}
    removed = [run for run in chosen if kept[id(run)] is None]
    for line in _lines(removed, root):
        say(line)
    for run in chosen:
        if kept[id(run)] is not None:
            say(f"kept: {_plain(run.path)}: {kept[id(run)]}")
    if not removed:
        say("there is nothing to remove")
    elif _confirmed(len(removed), given):
        for run in removed:
            remove_run(run)
        say(f"removed {len(removed)} run(s)")
    else:
        say(f"nothing was removed; add {typed('confirm', 'true')} to remove {len(removed)} run(s)")


def _confirmed(count: int, given: Mapping[str, str]) -> bool:
    """Return whether the user says so, on the command line or, at a terminal, when asked."""
    if "confirm" in given or not sys.stdin.isatty():
        return given.get("confirm") == "true"
    sys.stdout.write(f"remove {count} run(s), for good? Type yes: ")
    sys.stdout.flush()
    return sys.stdin.readline().strip() == "yes"
