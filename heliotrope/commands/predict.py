"""`predict`: what a trained run says of new rows, texts or pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import torch

from heliotrope import config
from heliotrope.commands.arguments import keys_and_values
from heliotrope.commands.output import standard_output
from heliotrope.commands.trained import Trained, read_checkpoint, read_config
from heliotrope.config.checks.data import check_csv_format
from heliotrope.config.checks.shared import check_shared
from heliotrope.config.run import Run
from heliotrope.config.training import TargetConfig
from heliotrope.data import Examples
from heliotrope.data.columns import Column, Raw, Values
from heliotrope.data.info import UNKNOWN, UNSEEN
from heliotrope.data.preparation import Preparation
from heliotrope.data.preparation.arrays import FittedTargetArrays
from heliotrope.data.preparation.numbers import FittedNumbers, numbers
from heliotrope.data.sources.new_rows import NewRows, read_new_rows
from heliotrope.data.sources.table_files import AS_USUAL, CsvFormat
from heliotrope.errors import ConfigError
from heliotrope.evaluation import taken
from heliotrope.system.console import plain_console

__all__ = ["predict_command"]

_KEYS = (
    *("run", "input", "output", "checkpoint", "device", "evaluation_batch_size"),
    *("data.bad_rows", "data.delimiter", "data.encoding", "data.decimal", "plugins"),
)
_NEEDED = {
    "run": "DIR, the directory of a run",
    "input": "FILE, a table, a text, a picture, a folder of these, or an .npz file of arrays",
}
_ENDINGS = (".csv", ".jsonl")


def predict_command(arguments: Sequence[str]) -> None:
    """`run=DIR input=FILE [key=value ...]`: write what a run says of new rows, a line each.

    `input` is a table with the columns that were trained on, a text or picture, a folder of these,
    or an .npz file of arrays. Keys::

        output=FILE                .csv or .jsonl; otherwise CSV on the standard output
        checkpoint=NAME            a folder of DIR/checkpoints instead of the newest one
        data.bad_rows=skip         leave out and count what cannot be read
        data.delimiter=CHARACTER   of a .csv file, if it is not that of the run's
        data.encoding=NAME         of a .csv file, if it is not that of the run's
        data.decimal=CHARACTER     a point or a comma, if it is not that of the run's
        device=auto|cpu|cuda
        evaluation_batch_size=N    rows that the model is given at once
        plugins=[mine.py]          code that the run needs, if it was never named here
    """
    config.load_plugins(arguments)
    given = keys_and_values(arguments, "predict", _KEYS, _NEEDED)
    output = _output_of(given.get("output"))
    bad_rows = given.get("data.bad_rows", "refuse")
    if bad_rows not in ("refuse", "skip"):
        raise ConfigError(f"data.bad_rows={bad_rows} is not one of refuse, skip.")
    directory = Path(given["run"])
    run = _with(read_config(directory), given)
    trained = Trained(directory, run, *read_checkpoint(directory, given.get("checkpoint")))
    if trained.preparation.task == "next_token":
        raise ConfigError(
            f"run={directory} was trained to continue texts, and predicts nothing of rows. Type "
            f"heliotrope generate run={directory} prompt=..."
        )
    if trained.preparation.task == "contrastive":
        raise ConfigError(
            f"run={directory} was trained to tell which pictures and texts belong together, and "
            f"predicts nothing of single rows. Type heliotrope evaluate run={directory} for how "
            "often it is right, or predict with a run of task=classification or task=regression."
        )
    new = read_new_rows(
        Path(given["input"]),
        trained.preparation,
        skip_bad=bad_rows == "skip",
        csv_format=_csv_format(run, given),
        array=getattr(run.data, "input", None) if run.data.name == "arrays" else None,
    )
    examples = trained.preparation.apply(_with_targets(new.raw, trained.preparation))
    console = plain_console(stderr=True)
    missing = _missing(new.raw, trained.preparation)
    for line in (*new.left_out, *missing, *_unseen(examples, trained.preparation)):
        console.print(line)
    rows = _predicted(trained, examples, new)
    first = next(rows)  # a model that does not fit is refused before a file is made
    with _opened(output) as file:
        as_json = output is not None and output.suffix == ".jsonl"
        writer: _Writer = _Json(file) if as_json else _Csv(file)
        writer.write(first)
        for row in rows:
            writer.write(row)


def _csv_format(run: Run, given: Mapping[str, str]) -> CsvFormat:
    """Return how a .csv file is written: as that of the run was, unless it is said otherwise."""
    own = {name: getattr(run.data, name, usual) for name, usual in asdict(AS_USUAL).items()}
    typed = {name: given[f"data.{name}"].strip("\"'") for name in own if f"data.{name}" in given}
    found = CsvFormat(**own | typed)
    check_csv_format(found.delimiter, found.encoding, found.decimal)
    return found


def _output_of(name: str | None) -> Path | None:
    """Return where predictions are written to; None for the standard output."""
    if name is None:
        return None
    path = Path(name)
    if path.suffix not in _ENDINGS:
        raise ConfigError(f"output={name} must end in {' or '.join(_ENDINGS)}. Set output=FILE.")
    if not path.parent.is_dir():
        raise ConfigError(f"output={name}: there is no folder {path.parent}. Name another.")
    return path


def _with(run: Run, given: Mapping[str, str]) -> Run:
    """Return the run on another device, and with another batch size, if these are given."""
    size = given.get("evaluation_batch_size", str(run.evaluation_batch_size))
    if not size.isdecimal():
        raise ConfigError(f"evaluation_batch_size={size} must be a whole number of at least 1.")
    device = given.get("device", run.device)
    changed = replace(run, device=device, evaluation_batch_size=int(size))
    check_shared(replace(changed, target=TargetConfig()))  # the target was the training's
    return changed


def _with_targets(raw: Raw, preparation: Preparation) -> Raw:
    """Return rows with zeros for what is to be predicted: a task must know its shape and type."""
    columns: dict[str, Column] = dict(raw.columns)
    for step in preparation.steps:
        if step.of_targets:
            shape = step.shape if isinstance(step, FittedTargetArrays) else ()
            zeros = Values(np.zeros((len(raw), *shape), np.float32 if shape else np.int64))
            columns |= dict.fromkeys(step.reads(), zeros)
    return replace(raw, columns=columns)


def _missing(raw: Raw, preparation: Preparation) -> list[str]:
    """Return lines about numbers that are missing in columns where training lacks none."""
    lines = []
    for step in preparation.steps:
        if not isinstance(step, FittedNumbers):
            continue
        lacking = np.isnan(numbers(raw, step.columns)).sum(axis=0).tolist()
        lines += [
            f"column {name}: {count:,} of {len(raw):,} numbers are missing, and the training data "
            "lack none; the model takes their mean"
            for name, count in zip(step.columns, lacking, strict=True)
            if count and name not in step.indicators
        ]
    return lines


def _unseen(examples: Examples, preparation: Preparation) -> list[str]:
    """Return lines about values and words that training has not seen."""
    lines = []
    every = torch.arange(len(examples))
    info = preparation.info()
    if "category" in examples.fields:
        unseen = (examples.take(every)["category"] == UNSEEN).sum(dim=0).tolist()
        lines += [
            f"column {name}: {count:,} of {len(examples):,} values do not occur in the training "
            "data; the model takes them for one value, that of the unseen"
            for name, count in zip(info.categories, unseen, strict=True)
            if count
        ]
    if "tokens" in examples.fields:
        batch = examples.take(every)
        unknown, count = int((batch["tokens"] == UNKNOWN).sum()), int(batch["tokens_length"].sum())
        if unknown:
            lines.append(
                f"{unknown:,} of {count:,} words do not occur in the model's vocabulary; it takes "
                "them for one word, the unknown"
            )
    return lines


def _predicted(trained: Trained, examples: Examples, new: NewRows) -> Iterator[dict[str, Any]]:
    """Yield a row's name and what is predicted of it, in the order of the input."""
    model, task = trained.model_for(examples)
    named = "row" if new.raw.numbers is not None else "file"
    size = trained.run.evaluation_batch_size
    for start in range(0, len(examples), size):
        rows = torch.arange(start, min(start + size, len(examples)))
        with torch.inference_mode():
            outputs = task.call(model, taken(examples, rows, model))
        columns = task.predictions(outputs.float().cpu())
        for row, name in enumerate(new.names[start : start + size]):
            yield {named: name, **{key: values[row] for key, values in columns.items()}}


class _Writer(Protocol):
    def write(self, row: Mapping[str, Any]) -> None: ...


class _Csv:
    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file, lineterminator="\n")
        self._begun = False

    def write(self, row: Mapping[str, Any]) -> None:
        if not self._begun:
            self._writer.writerow(row)
            self._begun = True
        self._writer.writerow(row.values())


class _Json:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Open a file; raises `ConfigError` naming it if that cannot be done."""
    if output is None:
        with standard_output() as file:
            yield file
        return
    try:
        file = output.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(
            f"output={output} cannot be written: {error.strerror}. Name another file."
        ) from error
    with file:
        yield file
