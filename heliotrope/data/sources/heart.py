"""Heart disease in four hospitals: a table with missing values and natural clients."""

from __future__ import annotations

import csv
import gzip

import numpy as np

from heliotrope.data.columns import Column, Raw, Strings, Values
from heliotrope.data.preparation import Categories, Labels, Numbers
from heliotrope.data.sources.unprepared import TEST_FRACTION, Unprepared, held_out, vendored

__all__ = ["heart"]

# Round means and deviations of adults, not taken from these patients: years, mmHg, mg/dl, beats a
# minute under exercise, mm of ST depression, vessels. They are used with data.fit=none.
_NUMBERS = {
    "age": (50.0, 10.0),
    "trestbps": (130.0, 20.0),
    "chol": (200.0, 50.0),
    "thalach": (150.0, 25.0),
    "oldpeak": (1.0, 1.0),
    "ca": (1.0, 1.0),
}
_CATEGORIES = ("sex", "cp", "fbs", "restecg", "exang", "slope", "thal")


def heart() -> Unprepared:
    """920 patients of 4 hospitals, 6 numbers and 7 categories each: diseased or not.

    A fifth of the patients of each hospital and diagnosis becomes the test split, the same in
    every run. Keys are the hospitals.

    Source: Janosi, Steinbrunn, Pfisterer and Detrano (1989), Heart Disease, UCI.
    """
    with gzip.open(vendored("heart.csv.gz"), "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, Column] = {
        name: Values(np.array([float(row[name] or "nan") for row in rows])) for name in _NUMBERS
    }
    columns |= {name: Strings.of([row[name] or None for row in rows]) for name in _CATEGORIES}
    label = np.array([row["num"] != "0" for row in rows], dtype=np.int64)
    columns["label"] = Values(label)
    hospitals = np.array([row["hospital"] for row in rows])
    patients = Raw(columns, hospitals, "the heart data")
    test = held_out(TEST_FRACTION, hospitals, label, count=len(rows))
    return Unprepared(
        *patients.parted(test),
        steps=(
            Numbers(tuple(_NUMBERS), tuple(_NUMBERS.values())),
            Categories(_CATEGORIES),
            Labels(("no disease", "disease")),
        ),
        task="classification",
        drawn=True,
    )
