"""Cross-validation: a job with `folds=5` is five, one a fold, in directories below its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from heliotrope.config import Mode, Run
from heliotrope.config.redaction import without_passwords
from heliotrope.errors import writing
from heliotrope.runs.directory import RunDirectory
from heliotrope.system.durable import write_whole

if TYPE_CHECKING:
    from heliotrope.report import RunRecord

__all__ = ["CrossValidation", "fold_directories", "fold_of"]

_PREFIX = "fold-"
_SUMMED = ("steps", "examples_seen", "wall_seconds", "train_seconds", "bytes_up", "bytes_down")


@dataclass(frozen=True)
class CrossValidation:
    """A job that holds out each fold in turn.

    Parameters
    ----------
    run
        Its config, of no single fold.
    directory
        That of the job, with one of each fold below it.
    """

    run: Run
    directory: Path

    @property
    def directories(self) -> list[Path]:
        """Those of the folds, in their order."""
        assert self.run.folds is not None
        return [self.directory / f"{_PREFIX}{fold}" for fold in range(self.run.folds)]

    def reopen(self) -> bytes | None:
        """Take back the result, as a fold is trained further; return its content, if any."""
        result = RunDirectory(self.directory).result
        with writing(result):
            try:
                content = result.read_bytes()
            except FileNotFoundError:
                return None
            result.unlink()
        return content

    def restore(self, content: bytes) -> None:
        """Put back the result that `reopen` took: nothing was trained after all."""
        write_whole(RunDirectory(self.directory).result, content)

    def write_result(self, mode: Mode, done: Collection[Path]) -> None:
        """Write config.yaml and result.json of all folds together, once all are `done`.

        `metrics` are means over the folds, and `deviations` their sample standard deviations;
        `folds` has the metrics of each.
        """
        from heliotrope.report import read_run  # few commands need it

        if not set(self.directories) <= set(done):
            return
        folds = [read_run(directory) for directory in self.directories]
        there = RunDirectory(self.directory)
        text = OmegaConf.to_yaml(OmegaConf.structured(without_passwords(self.run)))
        with writing(there.config):
            there.config.write_text(text)
        there.write_result(_combined(self.run, mode, folds))


def _combined(run: Run, mode: Mode, folds: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the content of result.json for all folds."""
    from heliotrope.report.replicates import Average

    names = dict.fromkeys(name for fold in folds for name in fold.metrics)
    averages = {
        name: average
        for name in names
        if (average := Average.of([fold.metrics.get(name) for fold in folds])) is not None
    }
    first = folds[0].result or {}
    sums = {key: [fold.quantity(key) for fold in folds] for key in _SUMMED}
    return {
        "schema": 1,
        "mode": mode,
        "experiment": run.name,
        "seed": run.seed,
        "status": "completed",
        "metrics": {name: average.mean for name, average in averages.items()},
        "deviations": {name: average.deviation for name, average in averages.items()},
        "directions": first.get("directions", {}),
        "folds": [
            {"directory": fold.directory.name, "metrics": dict(fold.metrics)} for fold in folds
        ],
        **{
            key: round(sum(filter(None, values)), 3)
            for key, values in sums.items()
            if None not in values
        },
        **{key: first.get(key) for key in ("parameters", "machine", "versions", "git_commit")},
    }


def fold_of(directory: Path) -> int | None:
    """Return which fold a directory is of, by its name; None if of none."""
    name = directory.name.removeprefix(_PREFIX)
    return int(name) if name != directory.name and name.isdecimal() else None


def fold_directories(directory: Path) -> list[Path]:
    """Return the directories of a job's folds that have begun; of a job without any, its own."""
    found = [path.parent for path in directory.glob(f"{_PREFIX}*/config.yaml")]
    folds = {fold: path for path in found if (fold := fold_of(path)) is not None}
    return [folds[fold] for fold in sorted(folds)] or [directory]
