"""What is in a dataset: its columns, how clients differ, and rows that occur twice.

Shape legend: N examples of the training split, C clients, G groups (labels, ranges, values).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from heliotrope.data.columns import Column, Items, Pieces, Raw, Strings, Texts, Values
from heliotrope.data.examples import Examples
from heliotrope.data.fields import Dense
from heliotrope.data.info import Info
from heliotrope.data.mapped import MappedRows
from heliotrope.data.partition import Partition
from heliotrope.data.preparation.text import words_of
from heliotrope.data.stored import StoredNumbers, StoredWords
from heliotrope.data.windows import Windows

__all__ = [
    "ColumnSummary",
    "Duplicates",
    "duplicates",
    "feature_skew",
    "group_counts",
    "missing_shares",
    "skew",
    "summarize",
]

_MOST_WORDS = 4  # values of a categorical column that are named
_MOST_CELLS = 10**7  # clients times tokens that are counted at once
_BLOCK = 4096  # examples looked at at once


@dataclass(frozen=True)
class ColumnSummary:
    """One column of one split: how many values are missing, and the range of the others."""

    name: str
    kind: str
    missing: int
    content: str


def summarize(raw: Raw) -> list[ColumnSummary]:
    """Return a summary of each column of a split."""
    return [_summary(name, column) for name, column in raw.columns.items()]


def _summary(name: str, column: Column) -> ColumnSummary:
    match column:
        case Strings() | StoredWords():
            counts = column.counts()
            order = np.argsort(-counts, kind="stable")[:_MOST_WORDS].tolist()
            named = ", ".join(f"{column.words[code]} {counts[code]:,}" for code in order)
            more = len(np.flatnonzero(counts)) - len(order)
            content = named + (f" and {more:,} others" if more > 0 else "")
            return ColumnSummary(name, "words", len(column) - int(counts.sum()), content)
        case Texts():
            lengths = np.array([len(words_of(text)) for text in column.texts] or [0])
            content = f"{_range(lengths)} words, {np.median(lengths):g} in the middle"
            return ColumnSummary(name, "text", int((lengths == 0).sum()), content)
        case Pieces():
            content = f"{_range(column.lengths)} characters, {column.lengths.sum():,} in all"
            return ColumnSummary(name, "characters", 0, content)
        case Values() if column.values.ndim > 1:
            shape = "x".join(map(str, column.values.shape[1:]))
            kind = "image" if column.values.ndim > 2 else "numbers"
            return ColumnSummary(name, kind, 0, f"{shape}, {_range(column.values)}")
        case MappedRows():
            shape = "x".join(map(str, column.shape))
            content = f"{shape} {column.array.dtype}, read from the file for each batch"
            return ColumnSummary(name, "mapped", 0, content)
        case StoredNumbers():
            found = [block[~np.isnan(block)].astype(np.float64) for block in column.blocks()]
            count = sum(map(len, found))
            ends = [end for some in found if len(some) for end in (some.min(), some.max())]
            mean = f", mean {sum(some.sum() for some in found) / count:.4g}" if count else ""
            content = _range(np.array(ends)) + mean
            return ColumnSummary(name, "number", len(column) - count, content)
        case Items():
            shape = "x".join(map(str, column.shape))
            return ColumnSummary(name, "items", 0, f"{shape}, read for each batch")
        case Values():
            values = column.values.astype(np.float64)
            there = values[~np.isnan(values)]
            mean = f", mean {there.mean():.4g}" if len(there) else ""
            return ColumnSummary(name, "number", len(values) - len(there), _range(there) + mean)
    return ColumnSummary(name, type(column).__name__, 0, "")


def _range(values: NDArray[np.generic]) -> str:
    return f"{values.min():g} to {values.max():g}" if values.size else "none"


@dataclass(frozen=True)
class Duplicates:
    """Rows whose inputs are the same as those of another: what is to be predicted may differ.

    Parameters
    ----------
    within
        Rows of the training split that occur there before.
    shared
        Of these, rows that another client holds too.
    leaked
        Split -> its rows that occur in the training split.
    """

    within: int
    shared: int
    leaked: dict[str, int]


def duplicates(
    train: Raw, others: dict[str, Raw], inputs: Sequence[str], owners: NDArray[np.int64] | None
) -> Duplicates:
    """Count rows that occur twice.

    Parameters
    ----------
    train, others
        The training split and the others, by name.
    inputs
        The columns that are compared.
    owners
        The client of each training row, [N]; None if there are no clients.
    """
    known: dict[int, set[int]] = {}
    within = shared = 0
    clients = [0] * len(train) if owners is None else owners.tolist()
    for row, client in zip(_hashes(train, inputs), clients, strict=True):
        holders = known.setdefault(row, set())
        within += bool(holders)
        shared += bool(holders - {client})
        holders.add(client)
    leaked = {
        name: sum(row in known for row in _hashes(raw, inputs)) for name, raw in others.items()
    }
    return Duplicates(within, shared, leaked)


def _hashes(raw: Raw, inputs: Sequence[str]) -> list[int]:
    """Return a number for each row, of 64 bits, that equal rows have in common in this process."""
    columns = [_keys(raw.columns[name]) for name in inputs]
    return [hash(row) for row in zip(*columns, strict=True)]


def _keys(column: Column) -> Iterable[bytes] | Iterable[str | None]:
    """Return what tells the rows of a column apart."""
    match column:
        case Strings():
            words = (*column.words, None)
            return [words[code] for code in column.codes.tolist()]
        case StoredWords():
            named = np.array([*column.words, None], dtype=object)
            return (word for codes in column.blocks() for word in named[codes])
        case StoredNumbers():
            return (cell.tobytes() for block in column.blocks() for cell in block)
        case Texts():
            return list(column.texts)
        case Pieces():
            pairs = zip(column.starts.tolist(), column.lengths.tolist(), strict=True)
            return [column.stream[start : start + length].tobytes() for start, length in pairs]
        case Values():
            values = np.ascontiguousarray(column.values)
            return [row.tobytes() for row in values]
        case MappedRows():
            return (row.tobytes() for block in column.blocks() for row in block)
        case Items():
            return [column.read([index]).tobytes() for index in range(len(column))]
    raise TypeError(f"rows of {type(column).__name__} cannot be compared")


def group_counts(groups: NDArray[np.int64], partition: Partition, count: int) -> NDArray[np.int64]:
    """Return how many examples of each of `count` groups each client holds: int64 [C, G]."""
    cells = partition.owners * count + groups
    return np.bincount(cells, minlength=len(partition) * count).reshape(len(partition), count)


def missing_shares(raw: Raw, partition: Partition) -> NDArray[np.float64]:
    """Return the share of each client's values that are missing, over all columns that may: [C]."""
    every = (_missing(column) for column in raw.columns.values())
    lacking = [missing for missing in every if missing is not None]
    shares = np.zeros(len(partition))
    for missing in lacking:
        shares += np.bincount(partition.owners, weights=missing, minlength=len(partition))
    return shares / np.maximum(partition.sizes * max(len(lacking), 1), 1)


def _missing(column: Column) -> NDArray[np.generic] | None:
    """Return how much of each example a column lacks, [N]; None if it always has all."""
    match column:
        case Strings():
            return column.codes < 0
        case StoredWords():
            return np.concatenate([codes < 0 for codes in column.blocks()])
        case StoredNumbers():
            return np.concatenate([np.isnan(block) for block in column.blocks()])
        case Values() if column.values.dtype.kind == "f":
            shares: NDArray[np.generic] = np.isnan(column.values).reshape(len(column), -1).mean(1)
            return shares
    return None


def skew(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how much each client's distribution over groups differs from that of all: [C].

    The total variation distance, 0 to 1: the share of examples that would have to be others.
    """
    own = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    everyone = counts.sum(axis=0) / max(int(counts.sum()), 1)
    distance: NDArray[np.float64] = np.abs(own - everyone).sum(axis=1) / 2
    return distance


def feature_skew(
    train: Examples, info: Info, partition: Partition
) -> dict[str, NDArray[np.float64]]:
    """Return for each input how much each client's values differ from those of all: name -> [C].

    Of numbers, and of images their brightness, it is the distance of the client's mean from that
    of all in standard deviations of all; of categories and words, the total variation distance.
    Of numbers and categories that stay in a file nothing is told.
    """
    found: dict[str, NDArray[np.float64]] = {}
    for name, field in train.fields.items():
        if name == "numeric" and isinstance(field, Dense):
            values = field.values.cpu().numpy()
            for index, column in enumerate(info.numeric):
                found[column] = _distance(values[:, index], partition)
        elif name == "category" and isinstance(field, Dense):
            codes = field.values.cpu().numpy()
            for index, (column, size) in enumerate(info.categories.items()):
                found[column] = skew(group_counts(codes[:, index], partition, size))
        elif name == "image":
            found["brightness"] = _distance(_brightness(train), partition)
        elif name == "tokens" and isinstance(field, Windows):
            size = len(info.vocabulary)
            if len(partition) * size <= _MOST_CELLS:
                found["tokens"] = skew(_token_counts(field, partition, size))
    return found


def _distance(values: NDArray[np.generic], partition: Partition) -> NDArray[np.float64]:
    numbers = values.astype(np.float64)
    sums = np.bincount(partition.owners, weights=numbers, minlength=len(partition))
    means = sums / np.maximum(partition.sizes, 1)
    deviation = numbers.std() or 1.0
    distance: NDArray[np.float64] = np.abs(means - numbers.mean()) / deviation
    return distance


def _brightness(train: Examples) -> NDArray[np.float64]:
    """Return the mean pixel of each image, [N]."""
    field = train.fields["image"]
    means = [
        field.take("image", rows)["image"].flatten(1).double().mean(dim=1)
        for rows in _blocks(len(train))
    ]
    return torch.cat(means).cpu().numpy()


def _token_counts(field: Windows, partition: Partition, size: int) -> NDArray[np.int64]:
    """Return how often each client's examples have each token: int64 [C, G]."""
    counts = np.zeros((len(partition), size), dtype=np.int64)
    for rows in _blocks(len(field)):
        taken = field.take("tokens", rows)
        tokens, lengths = taken["tokens"], taken["tokens_length"]
        inside = torch.arange(tokens.shape[1]) < lengths[:, None]
        owners = torch.from_numpy(partition.owners)[rows][:, None].expand_as(tokens)
        cells = (owners * size + tokens)[inside].numpy()
        counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
    return counts


def _blocks(examples: int) -> Iterator[torch.Tensor]:
    """Yield the positions of so many examples, some at a time."""
    for start in range(0, examples, _BLOCK):
        yield torch.arange(start, min(start + _BLOCK, examples))
