"""Files of a user's own: tables of patients and folders of pictures, and what they become."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from PIL import Image

from heliotrope.data.info import Info
from heliotrope.data.preparation import Preparation, Statistics
from heliotrope.data.sources import table as source_of_tables
from heliotrope.data.sources.unprepared import Unprepared

HEADER = ["age", "smokes", "site", "ward", "note", "sick"]


def patients(rng: np.random.Generator, count: int = 60) -> list[list[Any]]:
    """Draw rows under `HEADER`, of which some lack a value."""
    rows: list[list[Any]] = []
    for row in range(count):
        age = None if rng.random() < 0.1 else round(float(rng.normal(50, 9)), 1)
        smokes = None if rng.random() < 0.1 else ("yes", "no")[rng.integers(2)]
        note = f"patient number {row} was seen"
        site = "north" if row % 3 else "south"
        rows.append([age, smokes, site, int(rng.integers(1, 4)), note, int(rng.integers(2))])
    return rows


def write(path: Path, rows: list[list[Any]], header: list[str] = HEADER) -> Path:
    columns = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(dict(zip(header, row, strict=True))) for row in rows)
        path.write_text("".join(f"{line}\n" for line in lines))
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([header, *(["" if v is None else v for v in row] for row in rows)])
    return path


def table(path: Path, **changes: Any) -> Unprepared:
    chosen: dict[str, Any] = {"target": "sick", "ignore": ["note"], **changes}
    return source_of_tables.table(path=str(path), **chosen)


def prepared(found: Unprepared) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Info]:
    preparation = preparation_of(found)
    train, test = (
        preparation.apply(split).take(torch.arange(len(split)))
        for split in (found.train, found.test)
    )
    return train, test, preparation.info()


def pictures(rng: np.random.Generator, folder: Path, each: int = 10) -> Path:
    """Write pictures of two classes, of several sizes, modes and formats."""
    for name, colour in (("red", (220, 10, 10)), ("blue", (10, 10, 220))):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            size = tuple(rng.integers(5, 60, 2).tolist())
            picture = Image.new("RGB", size, colour)  # type: ignore[arg-type]
            picture = picture.convert("RGBA") if number % 3 == 0 else picture
            picture.save(folder / name / f"{number}.{('png', 'webp', 'bmp')[number % 3]}")
    return folder


def preparation_of(found: Unprepared) -> Preparation:
    statistics = Statistics.of(found.steps, found.train, "training")
    return Preparation.of(found.steps, statistics, "training", found.task)
