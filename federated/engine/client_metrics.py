"""What is kept of clients' evaluations: one sum of all, and a few numbers of each client.

A client's vector of sums may have a thousand cells, as the histograms have from which areas under
curves are computed. A block's are added up and its clients' numbers computed before the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from heliotrope.metrics import GroupedMetrics, Metrics, MetricSet, Sums

from ..updates import Failure

__all__ = ["Evaluations", "merged"]


@dataclass(frozen=True)
class Evaluations:
    """Metrics of K `clients` on their held-out examples, in client order, and who gave none.

    The vectors of sums are kept of all clients together, in `total`. Of each client there is its
    number of examples, `counts` int64 [K], and its `numbers`, float64 [K, N]: those that the
    metrics compute, in their order. `alone` is why clients were evaluated one at a time, if they
    were.
    """

    clients: tuple[int, ...]
    counts: NDArray[np.int64]
    numbers: Sums
    total: Metrics
    failures: list[Failure] = field(default_factory=list)
    alone: str | None = None

    @classmethod
    def of_nobody(cls, metrics: MetricSet) -> Evaluations:
        """Return the evaluations of no clients."""
        numbers = np.empty((0, len(metrics.directions)))
        return cls((), np.empty(0, dtype=np.int64), numbers, metrics.zero())

    @classmethod
    def of(cls, clients: Sequence[int], measured: GroupedMetrics) -> Evaluations:
        """Return the evaluations of clients, those whose loss is no number among the failures."""
        sound = measured.finite
        kept = measured.take(np.flatnonzero(sound))
        why = "evaluation: its loss is NaN or infinite"
        return cls(
            tuple(client for client, well in zip(clients, sound, strict=True) if well),
            kept.counts,
            np.stack(list(kept.compute().values()), axis=1),
            kept.total(),
            [
                Failure(client, why, "diverged")
                for client, well in zip(clients, sound, strict=True)
                if not well
            ],
        )

    def rows(self) -> list[dict[str, float]]:
        """Return the numbers of each client under `client`, `examples` and each metric's name."""
        names = ("client", "examples", *self.total.metric_set.directions)
        columns = (self.clients, self.counts.tolist(), *self.numbers.T.tolist())
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def merged(parts: Iterable[Evaluations]) -> Evaluations:
    """Return the evaluations of one or more workers or blocks of clients as one.

    Of each part only the numbers of its clients are kept: an iterator's are taken one at a time.
    """
    parts = iter(parts)
    first = next(parts)
    total, alone = first.total, first.alone
    clients, failures = list(first.clients), list(first.failures)
    counts, numbers = [first.counts], [first.numbers]
    for part in parts:
        total, alone = total + part.total, alone or part.alone
        clients += part.clients
        failures += part.failures
        counts.append(part.counts)
        numbers.append(part.numbers)
    order = np.argsort(clients, kind="stable")
    return Evaluations(
        tuple(np.asarray(clients, dtype=np.int64)[order].tolist()),
        np.concatenate(counts)[order],
        np.concatenate(numbers)[order],
        total,
        sorted(failures, key=lambda failure: failure.client),
        alone,
    )
