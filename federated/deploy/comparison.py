"""How far a deployed run is from its simulation with the same seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from heliotrope.errors import RunFailedError
from heliotrope.runs import checkpoint
from heliotrope.runs.directory import RunDirectory

__all__ = ["Comparison", "compare"]

_ROUNDING = 1e-4  # of the largest weight, and of each metric: float32 over some hundred steps


@dataclass(frozen=True)
class Comparison:
    """Two runs' results.

    Parameters
    ----------
    deployed, simulated
        The metrics of each, by name.
    weights
        The largest difference of two weights of the final models.
    largest
        The largest weight of the simulated one, by magnitude.
    """

    deployed: Mapping[str, float]
    simulated: Mapping[str, float]
    weights: float
    largest: float

    def table(self) -> str:
        """Return the lines that a user is shown."""
        lines = [f"{'':24}{'deployed':>14}{'simulated':>14}{'difference':>14}"]
        for name, value in self.deployed.items():
            other = self.simulated[name]
            lines.append(f"{name:24}{value:14.6g}{other:14.6g}{abs(value - other):14.3g}")
        lines.append(f"largest difference of two weights: {self.weights:.3g} of {self.largest:.3g}")
        return "\n".join(lines)

    def check(self) -> None:
        """Raise `RunFailedError` if they differ by more than rounding."""
        apart = [
            name
            for name, value in self.deployed.items()
            if not math.isclose(value, self.simulated[name], rel_tol=_ROUNDING, abs_tol=_ROUNDING)
        ]
        if apart or not self.weights <= _ROUNDING * max(1.0, self.largest):
            raise RunFailedError(
                f"the deployed run is not the simulated one: {', '.join(apart) or 'its weights'} "
                "differ by more than rounding. Look for clients that failed in metrics.jsonl, and "
                "for nodes with other data or versions."
            )


def compare(deployed: Path, simulated: Path) -> Comparison:
    """Return how far the run in one directory is from that in another."""
    metrics = [json.loads(RunDirectory(each).result.read_text()) for each in (deployed, simulated)]
    models = []
    for each in (deployed, simulated):
        saved = checkpoint.latest(RunDirectory(each).checkpoints, lambda _: None)
        if saved is None:
            raise RunFailedError(f"{each} has no checkpoint to compare.")
        models.append(saved.model)
    one, other = models
    pairs = [(value.double(), other[name].double()) for name, value in one.items()]
    return Comparison(
        deployed=metrics[0]["metrics"],
        simulated=metrics[1]["metrics"],
        weights=max(float((a - b).abs().max()) for a, b in pairs if a.numel()),
        largest=max(float(b.abs().max()) for _, b in pairs if b.numel()),
    )
