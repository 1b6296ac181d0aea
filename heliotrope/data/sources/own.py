"""A user's own dataset: what a plug-in's function gives, read once at the start.

Its items are (input, target). The input is a tensor, an array or a number, or a dictionary of
these; what it is called in a batch depends on its shape and type:

- bytes [H, W] or [C, H, W] are an `image`, and scaled as `data.fit` says;
- floating-point numbers [C, H, W] are an `image` too, those of [K], or one, `numeric`: as they are;
- anything else is the `input`, as it is. Of a dictionary each is what its key says.

A target that is an integer is a `label`, one that is a floating-point number a `target`; an array
of numbers is a `target` for a task of the user's own.

Shape legend: N items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope.config.data import OwnDataConfig
from heliotrope.data.columns import Column, Items, Raw, Values, item_array
from heliotrope.data.preparation import Arrays, Labels, Pixels, Step, Target, TargetArrays
from heliotrope.data.sources.unprepared import TEST_FRACTION, Unprepared, held_out
from heliotrope.errors import ConfigError, DataError, HeliotropeError
from heliotrope.plugin_loading import raised
from heliotrope.registry import Entry, Source
from heliotrope.seeding import isolated_rng, seed

__all__ = ["own_dataset"]

_TARGET = "target"
_READ_TWICE = 64  # items that are read again, to see whether they are the same


def own_dataset(entry: Entry, cfg: OwnDataConfig, task: str | None) -> Unprepared:
    """Return what a plug-in's function gives for its keys in `cfg`.

    That is what our own sources give, or a map-style dataset, or a pair of these: for training and
    for testing. Of a single one, a part is held out, the same in every run. What the function
    and its items draw from the generators of the process is the same in every run, too.

    Raises
    ------
    ConfigError
        If the function fails or gives something else, or a key has no effect.
    DataError
        If items cannot be used; names file, item and remedy.
    """
    what = f"data={entry.name} ({entry.where})"
    with isolated_rng(seed(0, "data", entry.name)):
        try:
            found = entry.build(vars(cfg))
        except HeliotropeError:
            raise
        except Exception as error:
            raise ConfigError(f"{what} cannot be made: {raised(error)}") from error
        if isinstance(found, Unprepared):
            if not cfg.materialise:
                raise ConfigError(
                    f"data.materialise=false has no effect with {what}, which gives columns. Leave "
                    "it out."
                )
            return found
        pair = found if isinstance(found, tuple) and len(found) == 2 else (found,)
        names = ("training", "test") if len(pair) == 2 else ("",)
        wheres = [f"{what}, its {name} dataset".replace("  ", " ") for name in names]
        read = [
            _read(dataset, where, cfg.materialise, entry.source)
            for dataset, where in zip(pair, wheres, strict=True)
        ]
    return _divided(what, read, task)


_Kinds = dict[str, tuple[tuple[int, ...], Any]]  # shape and type of what an item has, by name


@dataclass(frozen=True, eq=False)
class _Split:
    """What a dataset has given.

    `kinds` are those of its inputs and of the target, `targets` are [N, ...].
    """

    inputs: dict[str, Column]
    targets: NDArray[Any]
    kinds: _Kinds
    class_names: tuple[str, ...]
    where: str

    def raw(self) -> Raw:
        """Return its columns."""
        columns = {**self.inputs, _TARGET: Values(self.targets)}
        return Raw(columns, origin=self.where)


def _read(dataset: Any, where: str, materialise: bool, source: Source | None) -> _Split:
    if isinstance(dataset, list | tuple | str | Mapping) or not all(
        hasattr(dataset, method) for method in ("__len__", "__getitem__")
    ):
        raise ConfigError(
            f"{where} is a {type(dataset).__name__}. Return a map-style torch.utils.data.Dataset, "
            "with __len__ and __getitem__, or a tuple of two of them: for training and for testing."
        )
    try:
        count = len(dataset)
    except Exception as error:
        raise ConfigError(f"{where}: its length raises {raised(error)}") from error
    if count == 0:
        raise DataError(f"{where} has no items: its length is 0. Check where it looks for them.")
    first = _item(dataset, 0, where)
    kinds: _Kinds = {name: (value.shape, value.dtype) for name, value in first.items()}
    if not materialise and len(kinds) > 2:
        raise ConfigError(
            f"{where} has the inputs {', '.join(list(kinds)[:-1])}, which "
            "data.materialise=false would read apart from each other. Leave it out."
        )
    kept = {n: np.empty((count, *shape), dtype) for n, (shape, dtype) in kinds.items()}
    if not materialise:
        kept = {_TARGET: kept[_TARGET]}
    for number in range(count):
        found = _item(dataset, number, where)
        _refuse_others(f"{where}, item {number}", found, kinds)
        for name, values in kept.items():
            values[number] = found[name]
    _refuse_changing(dataset, kept, where)
    targets = kept.pop(_TARGET)
    inputs: dict[str, Column] = {name: Values(values) for name, values in kept.items()}
    if not materialise:
        name, (shape, dtype) = next(iter(kinds.items()))
        inputs = {name: Items(dataset, np.arange(count), shape, dtype, source)}
    names = getattr(dataset, "classes", ())
    written = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return _Split(inputs, targets, kinds, tuple(names) if written else (), where)


def _item(dataset: Any, number: int, where: str) -> dict[str, NDArray[Any]]:
    """Return the inputs of an item by what they are called, and after them its target."""
    try:
        item = dataset[number]
    except HeliotropeError:
        raise
    except Exception as error:
        raise DataError(f"{where}, item {number}: reading it raises {raised(error)}") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        got = f"{len(item)} values" if isinstance(item, tuple | list) else type(item).__name__
        raise DataError(f"{where}, item {number} is {got}. Return two: (input, target).")
    given, target = item
    named = given if isinstance(given, Mapping) else {"": given}
    found = {}
    for key, value in named.items():
        array = item_array(value)
        if array is None:
            raise DataError(
                f"{where}, item {number}: its input {key} is a {type(value).__name__}. ".replace(
                    "  ", " "
                )
                + "Return a tensor, an array or a number, or a dictionary of these."
            )
        if array.dtype == np.uint8 and array.ndim == 2:
            array = array[np.newaxis]
        found[str(key) or _called(array)] = array
    label = item_array(target)
    if label is None:
        raise DataError(
            f"{where}, item {number}: its target is a {type(target).__name__}. Return a whole "
            "number for a class, or a fraction for a number to be predicted."
        )
    taken = {_TARGET, "label"} & found.keys()
    if taken or not found:
        raise DataError(
            f"{where}, item {number}: its inputs are called {', '.join(found) or 'nothing'}. Give "
            "them other names than label and target."
        )
    _refuse_infinite(f"{where}, item {number}", found)
    return {**found, _TARGET: label.astype(np.int64) if label.dtype == np.uint8 else label}


def _refuse_infinite(where: str, found: Mapping[str, NDArray[Any]]) -> None:
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"{where}: its {name} holds a number that is missing (NaN), infinite or too large "
                "for float32. Mend it, or leave the item out."
            )


def _called(array: NDArray[Any]) -> str:
    """Return what an input without a name is called in a batch."""
    if array.ndim == 3 and (array.dtype == np.uint8 or array.dtype.kind == "f"):
        return "image"
    return "numeric" if array.ndim <= 1 and array.dtype.kind == "f" else "input"


def _refuse_others(where: str, found: Mapping[str, NDArray[Any]], kinds: _Kinds) -> None:
    """Refuse an item that is not like the first one."""
    if found.keys() != kinds.keys():
        raise DataError(
            f"{where} has {', '.join(found)}, but item 0 has {', '.join(kinds)}. Give all items "
            "the same inputs."
        )
    for name, value in found.items():
        shape, dtype = kinds[name]
        if (value.shape, value.dtype) != (shape, dtype):
            raise DataError(
                f"{where}: its {name} is {value.dtype} {list(value.shape)}, but that of item 0 is "
                f"{dtype} {list(shape)}. Bring all items to one shape and type: crop, pad or "
                "convert them."
            )


def _refuse_changing(dataset: Any, kept: Mapping[str, NDArray[Any]], where: str) -> None:
    """Refuse items that differ between two reads, such as by random augmentation."""
    count = len(dataset)
    for number in np.unique(np.linspace(0, count - 1, _READ_TWICE).astype(np.int64)).tolist():
        again = _item(dataset, number, where)
        for name, values in kept.items():
            if values[number].tobytes() != again[name].tobytes():
                remedy = (
                    "Items are read once, at the start. Augment in the model, or set "
                    "data.materialise=false to read inputs whenever a batch has them."
                )
                if name == _TARGET:
                    remedy = "Targets are read once, at the start. Keep each as it is."
                raise DataError(
                    f"{where}, item {number}: its {name} differs between two reads. {remedy}"
                )


def _divided(what: str, read: Sequence[_Split], task: str | None) -> Unprepared:
    """Return the columns of both splits, and the steps that make fields of them."""
    for name, kind in read[0].kinds.items():
        other = read[-1].kinds.get(name)
        if other != kind or len(read[-1].kinds) != len(read[0].kinds):
            raise DataError(
                f"{what}: the {name} of the training dataset is {kind[1]} {list(kind[0])}, that of "
                f"the test dataset {'missing' if other is None else f'{other[1]} {list(other[0])}'}"
                ". Prepare both alike."
            )
    steps = [_input_step(name, read[0].inputs[name]) for name in read[0].inputs]
    last, posed = _target_step(read, task)
    train, test = read[0].raw(), read[-1].raw()
    if len(read) == 1:
        by = [read[0].targets] if read[0].targets.ndim == 1 else []
        mask = held_out(TEST_FRACTION, *by, count=len(train))
        if not mask.any():
            raise DataError(
                f"{what}: its dataset has {len(train)} item(s), of which a fifth is held out for "
                "testing: none. Return three or more, or a tuple of two datasets, for training and "
                "for testing."
            )
        train, test = train.parted(mask)
    said = ", ".join(
        f"{name} {dtype} {list(shape)}" for name, (shape, dtype) in read[0].kinds.items()
    )
    note = f"{what}: {len(train):,} training and {len(test):,} test items of {said}"
    return Unprepared(train, test, (*steps, last), posed, (note,), drawn=len(read) == 1)


def _input_step(name: str, column: Column) -> Step:
    assert isinstance(column, Values | Items)
    shape = tuple(column.values.shape[1:]) if isinstance(column, Values) else column.shape
    if isinstance(column, Values) and column.values.dtype == np.uint8 and len(shape) == 3:
        return Pixels(shape, column=name)
    return Arrays(name, shape)


def _target_step(read: Sequence[_Split], task: str | None) -> tuple[Step, str]:
    """Return what makes a field of the targets, and the task that they pose."""
    targets = read[0].targets
    if targets.ndim > 1:
        if task is None:
            raise DataError(
                f"{read[0].where}: its targets are arrays {list(targets.shape[1:])}, of which no "
                "task is known. Return one number for each item, or choose a task of your own: "
                "task=NAME."
            )
        return TargetArrays(_TARGET, tuple(targets.shape[1:])), task
    if task == "rating":
        return Target("rating", _TARGET), task
    if targets.dtype.kind == "f" or (task == "regression" and not read[0].class_names):
        return Target(), "regression"
    for split in read:
        least = int(split.targets.min())
        if least < 0:
            number = int(split.targets.argmin())
            raise DataError(
                f"{split.where}, item {number}: its target is {least}. Number the classes from 0 "
                "on, or return fractions (float) for a number to be predicted."
            )
    count = 1 + max(int(split.targets.max()) for split in read)
    names, others = (split.class_names for split in (read[0], read[-1]))
    for index, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            raise DataError(
                f"{read[-1].where}: its class {index} is {other}, but {name} in the training "
                "dataset. Give both the same classes, in one order."
            )
    numbered = len(names) < count
    if numbered:
        names = tuple(map(str, range(count)))
    return Labels(_told_apart(names), _TARGET, numbered), "classification"


def _told_apart(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of classes, with its number behind each that others have too."""
    times = Counter(names)
    return tuple(f"{n} ({index})" if times[n] > 1 else n for index, n in enumerate(names))
