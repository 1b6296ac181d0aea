"""`load`: from a name to a dataset whose splits are ready for a model."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from heliotrope import registry
from heliotrope.config.data import DataConfig, Fit, OwnDataConfig
from heliotrope.config.folds import Fold
from heliotrope.data.dataset import Dataset, Fitting
from heliotrope.data.fingerprint import fingerprint
from heliotrope.data.folds import holding_out, undivided
from heliotrope.data.posing import posing
from heliotrope.data.preparation import Labels, Preparation, Statistics
from heliotrope.data.sources.own import own_dataset
from heliotrope.data.sources.unprepared import Unprepared
from heliotrope.errors import DataError, closest
from heliotrope.seeding import numpy_generator

__all__ = ["load"]


def load(
    cfg: DataConfig,
    run_seed: int,
    preparation: Preparation | None = None,
    *,
    task: str | None = None,
    fold: Fold | None = None,
    hashed: bool = False,
) -> Dataset:
    """Load the dataset `cfg.name`, take its validation split out, and prepare all splits.

    The test split is the dataset's own and never depends on `run_seed`, unless a `fold` is held out
    instead; the validation split does, and so does the preparation, which is fitted to the training
    examples without it. A given `preparation`, such as a trained model's own, takes its place. With
    `data.fit=private` nothing is fitted yet: see `heliotrope.data.private_fit`. `task` is the one
    that is chosen; None for that which the data poses. With `hashed` the data say their `content`,
    which is the same for all folds.

    Raises
    ------
    DataError
        If the name is unknown, the files cannot be found or are damaged, folds or the validation
        split cannot be taken, or a split does not fit the preparation.
    """
    known = registry.names("data")
    if cfg.name not in known:
        raise DataError(
            f"data.name={cfg.name} is not one of {', '.join(known)}.{closest(cfg.name, known)}"
        )
    task = task if preparation is None else preparation.task
    unposed = _unprepared(cfg, task)
    found = posing(unposed if fold is None else undivided(unposed, cfg.name), task, cfg.name)
    if preparation is not None:
        for step in found.steps:
            if isinstance(step, Labels):
                train, test = step.by_name(found.train), step.by_name(found.test)
                found = replace(found, train=train, test=test)
    content = fingerprint(found.train) if hashed else None
    if fold is not None:
        found = holding_out(found, fold, run_seed, cfg.name)
    for split, raw in (("training", found.train), ("test", found.test)):
        if not len(raw):
            raise DataError(
                f"data={cfg.name} has no {split} examples: {raw.origin}. "
                f"{_how_to_have_some(cfg, split, len(found.train))}"
            )
    held_out = _validation_indices(len(found.train), cfg.validation_fraction, run_seed)
    kept = np.ones(len(found.train), dtype=np.bool_)
    kept[held_out] = False
    train = found.train.subset(np.flatnonzero(kept)) if len(held_out) else found.train
    validation = found.train.subset(held_out)
    fitting = None
    if preparation is None:
        # Checked with the configuration; sums with noise come after the data are divided.
        fit = "none" if cfg.fit == "private" else cast(Fit, cfg.fit)
        statistics = Statistics.of(found.steps, train, fit)
        preparation = Preparation.of(found.steps, statistics, fit, found.task)
        fitting = Fitting(found.steps, train, validation, found.test, statistics, preparation)
    return Dataset(
        name=cfg.name,
        train=preparation.apply(train, training=train),
        validation=preparation.apply(validation, training=train),
        test=preparation.apply(found.test, training=train),
        info=preparation.info(),
        preparation=preparation,
        fitting=fitting,
        notes=found.notes,
        content=content,
        files=found.files,
    )


def _how_to_have_some(cfg: DataConfig, split: str, rows: int) -> str:
    keys = vars(cfg)
    if split == "test" and keys.get("test") is None and "test_fraction" in keys:
        return (
            f"data.test_fraction={keys['test_fraction']} of {rows} row(s) is none. Add rows, raise "
            "it, or name the file of others: data.test=FILE."
        )
    return "Training and testing need one each: add some."


def _unprepared(cfg: DataConfig, task: str | None) -> Unprepared:
    entry = registry.entry("data", cfg.name)
    if isinstance(cfg, OwnDataConfig):
        return own_dataset(entry, cfg, task)
    found: Unprepared = entry.build(vars(cfg))
    return found


def _validation_indices(examples: int, fraction: float, run_seed: int) -> NDArray[np.int64]:
    """Draw ``round(fraction * examples)`` positions, sorted; none for a fraction of 0."""
    count = round(fraction * examples)
    if fraction and not 0 < count < examples:
        remedy = "Set it to 0."
        if examples > 1:
            nearest = 1 if count == 0 else examples - 1
            remedy = f"Set it to {_fraction_of(nearest, examples)}, or to 0."
        raise DataError(
            f"data.validation_fraction={fraction} of {examples} training example(s) leaves "
            f"{examples - count} for training and {count} for validation; each needs at least "
            f"one. {remedy}"
        )
    generator = numpy_generator(run_seed, "validation")
    return np.sort(generator.choice(examples, size=count, replace=False))


def _fraction_of(count: int, examples: int) -> str:
    """Return the shortest decimal fraction that is rounded to `count` of the examples."""
    texts = (f"{count / examples:.{digits}f}" for digits in range(1, 18))
    return next(text for text in texts if round(float(text) * examples) == count)
