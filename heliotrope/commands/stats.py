"""`stats`: what is in an experiment's data, and how it is divided among its clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from heliotrope.commands.find import run_of, save_plot
from heliotrope.config import Run
from heliotrope.data import Dataset, Partition, Traits, load, partition
from heliotrope.data.dataset import Fitting
from heliotrope.data.info import UNKNOWN, UNSEEN, Info
from heliotrope.data.summary import (
    duplicates,
    feature_skew,
    group_counts,
    missing_shares,
    skew,
    summarize,
)
from heliotrope.data.traits import quantile_of
from heliotrope.system.console import plain_console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["stats_command"]

_MOST_ROWS = 20  # clients that are listed
_MOST_BARS = 100  # clients that are drawn
_MOST_GROUPS = 12  # labels that are drawn in a colour of their own
_LONGEST = 24  # letters of a name that is drawn
_RANGES = 5  # of numbers to be predicted, which clients are compared by


def stats_command(arguments: Sequence[str]) -> None:
    """`[key=value ...] [output=FILE]`: print counts, ranges, skew and duplicates; draw clients."""
    run, output = run_of(arguments, "stats.png", "federated")
    run.data.fit = "training"  # what differs between clients is to be seen
    dataset = load(run.data, run.seed, task=run.task_name, fold=run.data_fold)
    assert dataset.fitting is not None
    traits = Traits.of(dataset.train)
    divided = partition(run.federated.partition, traits, run.seed)
    console = plain_console()
    for note in dataset.notes:
        console.print(note)
    console.print(_columns(dataset.fitting))
    for line in (*_splits(dataset), *_doubles(dataset, dataset.fitting, divided)):
        console.print(line)
    names, counts = _groups(traits, dataset.info, divided)
    console.print(_clients(run, dataset, divided, names, counts))
    save_plot(_drawn(divided, dataset.train.keys, names, counts), output)
    console.print(f"plot: {output}")


def _columns(fitting: Fitting) -> Table:
    """Return a table of the training split's columns."""
    table = Table("column", "holds", "missing", "values", title="training split")
    for column in summarize(fitting.train):
        share = column.missing / len(fitting.train)
        missing = f"{column.missing:,} ({share:.1%})" if column.missing else "0"
        table.add_row(column.name, column.kind, missing, column.content)
    return table


def _splits(dataset: Dataset) -> list[str]:
    """Return lines about the splits: their sizes, and what training has not seen."""
    splits = {"validation": dataset.validation, "test": dataset.test}
    sizes = [f"{len(split):,} {name}" for name, split in splits.items()]
    lines = [f"examples: {len(dataset.train):,} training, {', '.join(sizes)}"]
    for name, unseen, of in (("tokens", UNKNOWN, "tokens"), ("category", UNSEEN, "categories")):
        for split, examples in splits.items():
            field = examples.fields.get(name)
            if field is None or not len(examples):
                continue
            taken = examples.take(torch.arange(len(examples)))
            values, count = taken[name], taken[name].numel()
            if name == "tokens":
                count = int(taken["tokens_length"].sum())
            found = int((values == unseen).sum())
            if found:
                lines.append(
                    f"{split}: {found:,} of {count:,} {of} ({found / count:.2%}) do not occur in "
                    "the training split"
                )
    return lines


def _doubles(dataset: Dataset, fitting: Fitting, partition: Partition) -> list[str]:
    """Return lines about rows that occur twice."""
    columns = [
        name for step in fitting.preparation.steps for name in step.reads() if not step.of_targets
    ]
    others = {"validation": fitting.validation, "test": fitting.test}
    found = duplicates(fitting.train, others, columns, partition.owners)
    lines = [f"duplicates: {found.within:,} training examples occur there before"]
    if found.shared:
        lines.append(f"duplicates: {found.shared:,} of these are held by another client too")
    lines += [
        f"duplicates: {count:,} of {len(getattr(dataset, split)):,} {split} examples occur in "
        "the training split"
        for split, count in found.leaked.items()
        if len(getattr(dataset, split))
    ]
    return lines


def _groups(
    traits: Traits, info: Info, partition: Partition
) -> tuple[list[str], NDArray[np.int64]]:
    """Return by what clients are compared: the groups' names, and each client's counts [C, G]."""
    if traits.labels is not None:
        names = list(info.class_names)
        return names, group_counts(traits.labels, partition, len(names))
    if traits.targets is None:
        return ["examples"], partition.sizes[:, np.newaxis]
    groups = quantile_of(traits.targets, _RANGES)
    found, codes = np.unique(groups, return_inverse=True)
    ranges = [traits.targets[groups == group] for group in found.tolist()]
    ends = [(f"{values.min():g}", f"{values.max():g}") for values in ranges]
    names = [low if low == high else f"{low} to {high}" for low, high in ends]
    return names, group_counts(codes, partition, len(names))


def _clients(
    run: Run, dataset: Dataset, partition: Partition, names: list[str], counts: NDArray[np.int64]
) -> Table:
    """Return a table of the clients, the largest and the smallest if there are many."""
    features = feature_skew(dataset.train, dataset.info, partition)
    compared = skew(counts) if len(names) > 1 else None
    assert dataset.fitting is not None
    missing = missing_shares(dataset.fitting.train, partition)
    title = f"{len(partition):,} clients, federated/partition={run.federated.partition.name}"
    headings = ("client", "examples", "missing", "skew", "most different input", "most of")
    table = Table(*headings, title=title)
    listed = np.argsort(-partition.sizes, kind="stable").tolist()
    if len(listed) > _MOST_ROWS:
        listed = listed[: _MOST_ROWS // 2] + listed[-(_MOST_ROWS // 2) :]
    keys = dataset.train.keys
    for client in listed:
        column = max(features, key=lambda name: features[name][client], default=None)
        most = np.argsort(-counts[client], kind="stable")[:3].tolist()
        table.add_row(
            _name(client, partition, keys),
            f"{partition.sizes[client]:,}",
            f"{missing[client]:.1%}",
            "" if compared is None else f"{compared[client]:.3f}",
            "" if column is None else f"{column} {features[column][client]:.2f}",
            ", ".join(f"{names[g]} {counts[client, g]:,}" for g in most if counts[client, g]),
        )
    middle = {name: float(np.median(values)) for name, values in features.items()}
    column = max(middle, key=middle.__getitem__, default=None)
    table.add_section()
    table.add_row(
        "all, the median",
        f"{np.median(partition.sizes):,g}",
        f"{np.median(missing):.1%}",
        "" if compared is None else f"{np.median(compared):.3f}",
        "" if column is None else f"{column} {middle[column]:.2f}",
        ", ".join(f"{name} {total:,}" for name, total in _largest(names, counts)),
    )
    predicted = "labels" if "label" in dataset.train.fields else "targets"
    table.caption = (
        "skew: the share of a client's examples that would have to be others for its "
        f"{predicted} to be like all clients' (0 to 1); of numbers, how many deviations its mean "
        "is off"
    )
    return table


def _largest(names: list[str], counts: NDArray[np.int64]) -> list[tuple[str, int]]:
    totals = counts.sum(axis=0)
    order = np.argsort(-totals, kind="stable")[:3].tolist()
    return [(names[group], int(totals[group])) for group in order]


def _name(client: int, partition: Partition, keys: NDArray[Any] | None) -> str:
    """Return a client's natural key if it has one, else its number."""
    if partition.named is None or keys is None:
        return str(client)
    return str(keys[partition[client][0]])


def _drawn(
    partition: Partition, keys: NDArray[Any] | None, names: list[str], counts: NDArray[np.int64]
) -> Figure:
    """Return bars of the clients' examples by group; of many, also how many are of which size."""
    from matplotlib.figure import Figure  # here: it takes a second to import

    many = len(partition) > _MOST_ROWS
    figure = Figure(figsize=(10 if many else 7, 4), layout="constrained")
    bars, *sizes = figure.subplots(1, 1 + many, squeeze=False)[0]
    shown = np.arange(len(partition))
    if len(partition) > _MOST_BARS:  # evenly from the largest to the smallest
        order = np.argsort(-partition.sizes, kind="stable")
        shown = order[np.linspace(0, len(partition) - 1, _MOST_BARS).astype(np.int64)]
    largest = np.argsort(-counts.sum(axis=0), kind="stable")[:_MOST_GROUPS]
    groups = [(names[group], counts[:, group]) for group in sorted(largest.tolist())]
    rest = np.delete(counts, largest, axis=1).sum(axis=1)
    if rest.any():
        groups.append(("others", rest))
    below = np.zeros(len(shown))
    for index, (name, column) in enumerate(groups):
        label = name[:_LONGEST].replace("$", r"\$")
        bars.bar(range(len(shown)), column[shown], bottom=below, label=label, color=f"C{index}")
        below += column[shown]
    bars.set(xlabel=f"client ({len(shown):,} of {len(partition):,})", ylabel="training examples")
    bars.legend(fontsize="small", ncols=2)
    if not many:
        labels = [
            _name(client, partition, keys)[:_LONGEST].replace("$", r"\$")
            for client in shown.tolist()
        ]
        bars.set_xticks(range(len(shown)), labels, rotation=30, ha="right", fontsize="small")
    for histogram in sizes:
        histogram.hist(partition.sizes, bins=30)
        histogram.set(xlabel="training examples", ylabel="clients")
    return figure
