"""What the examples of a split can be divided, and compared, by: labels, targets, natural keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope.data.examples import Examples
from heliotrope.data.fields import Dense
from heliotrope.errors import PartitionError

__all__ = ["Traits", "quantile_of"]

_TARGETS = ("target", "rating")
_ONE_EACH = ("label", *_TARGETS)


@dataclass(frozen=True, eq=False)
class Traits:
    """What is known of each of N examples.

    Parameters
    ----------
    examples
        N.
    labels
        Class indices, int64 [N]; None if examples have no classes.
    targets
        Numbers to be predicted, [N]; None if there are none.
    keys
        Natural groups, [N], of any type that can be sorted; None if there are none.
    """

    examples: int
    labels: NDArray[Any] | None = None
    targets: NDArray[Any] | None = None
    keys: NDArray[Any] | None = None

    @classmethod
    def of(cls, examples: Examples) -> Traits:
        """Return those of a split: its fields `label`, `target` or `rating`, and its keys."""
        dense = {
            name: field.values.cpu().numpy()
            for name, field in examples.fields.items()
            if isinstance(field, Dense) and field.values.dim() == 1 and name in _ONE_EACH
        }
        targets = next((dense[name] for name in _TARGETS if name in dense), None)
        return cls(len(examples), dense.get("label"), targets, examples.keys)

    def subset(self, rows: NDArray[np.int64]) -> Traits:
        """Return those of the examples at `rows`, in this order."""
        labels, targets, keys = (
            None if values is None else values[rows]
            for values in (self.labels, self.targets, self.keys)
        )
        return Traits(len(rows), labels, targets, keys)

    def sortable(self, by: str, scheme: str) -> NDArray[Any]:
        """Return what `by` names, [N]: `label`, `target`, `key`, or `auto`, the first there is.

        Raises `PartitionError`, naming `scheme`, if the examples have no such thing.
        """
        found = {"label": self.labels, "target": self.targets, "key": self.keys}
        if by == "auto":
            by = next((name for name, values in found.items() if values is not None), by)
        values = found.get(by)
        if values is not None:
            return values
        there = [name for name, values in found.items() if values is not None]
        if not there:
            raise PartitionError(
                f"federated/partition={scheme} divides by labels, numbers to be predicted or "
                "natural keys, and these examples have none of them. Choose "
                "federated/partition=iid or quantity."
            )
        raise PartitionError(
            f"federated.partition.by={by}, but these examples have no {by}. Set "
            f"federated.partition.by={there[0]}, or choose federated/partition=iid or quantity."
        )

    def groups(self, by: str, scheme: str, quantiles: int) -> NDArray[Any]:
        """Return the group of each example, [N]: its label, its key, or the quantile of its target.

        Raises `PartitionError` as `sortable` does.
        """
        values = self.sortable(by, scheme)
        if self.targets is None or values is not self.targets:
            return values
        return quantile_of(values, quantiles)


def quantile_of(values: NDArray[Any], quantiles: int) -> NDArray[np.int64]:
    """Return which of `quantiles` ranges of about equal numbers each value is in, int64 [N].

    Equal values are in one range, so that there may be fewer.
    """
    edges = np.quantile(values, np.arange(1, quantiles) / quantiles)
    return np.searchsorted(edges, values, side="right").astype(np.int64)
