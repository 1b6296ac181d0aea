"""Diabetes progression, which comes with scikit-learn: a small regression."""

from __future__ import annotations

import numpy as np

from heliotrope.data.columns import Column, Raw, Strings, Values
from heliotrope.data.preparation import Categories, Numbers, Target
from heliotrope.data.sources.sklearn_files import sklearn_file
from heliotrope.data.sources.unprepared import TEST_FRACTION, Unprepared, held_out

__all__ = ["diabetes"]

_NUMBERS = ("age", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
_COLUMNS = ("age", "sex", *_NUMBERS[1:])


def diabetes() -> Unprepared:
    """442 patients, 9 measurements and the sex of each: how far diabetes goes on in a year.

    Every fifth patient by progression is in the test split, the same in every run.

    Source: Efron, Hastie, Johnstone and Tibshirani (2004), Least Angle Regression.

    Raises
    ------
    DataError
        If scikit-learn is not installed.
    """
    rows = np.loadtxt(sklearn_file("diabetes", "diabetes_data_raw.csv.gz"))
    target = np.loadtxt(sklearn_file("diabetes", "diabetes_target.csv.gz"))
    columns: dict[str, Column] = {name: Values(rows[:, _COLUMNS.index(name)]) for name in _NUMBERS}
    columns["sex"] = Strings.of([str(int(code)) for code in rows[:, _COLUMNS.index("sex")]])
    columns["target"] = Values(target)
    patients = Raw(columns, origin="the diabetes data")
    test = held_out(TEST_FRACTION, target, count=len(rows))
    return Unprepared(
        *patients.parted(test),
        steps=(Numbers(_NUMBERS), Categories(("sex",)), Target()),
        task="regression",
        drawn=True,
    )
