"""How long a round takes, of a cohort of any size: on devices of their own, and simulated here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliotrope.planning.network import Network

__all__ = ["Rounds"]


@dataclass(frozen=True)
class Rounds:
    """Rounds of clients that are like those of a run.

    Parameters
    ----------
    steps
        Local steps of a round, of each client that may be drawn: int64 [clients].
    device_seconds
        How long a client takes for a step on a machine like this one, alone.
    simulated_seconds
        How long a client's step takes here, with others beside it.
    workers
        That simulate.
    client_bytes
        That a client is sent, and sends back.
    server, client
        Links: of the server, which all clients share, and of each client.
    """

    steps: NDArray[np.int64]
    device_seconds: float
    simulated_seconds: float
    workers: int
    client_bytes: int
    server: Network
    client: Network

    def transfer_seconds(self, cohort: int) -> float:
        """Return how long it takes to send all of them the model, and to have all replies."""
        one = self.client.seconds(self.client_bytes)
        return 2 * max(one, self.server.seconds(cohort * self.client_bytes))

    def training_seconds(self, cohort: int) -> float:
        """Return how long the slowest of a cohort trains, on average over cohorts.

        Of K clients drawn with replacement, the largest has at most the i-th of n sorted numbers of
        steps with a probability of (i/n)^K.
        """
        ordered = np.sort(self.steps).astype(np.float64)
        below = (np.arange(len(ordered) + 1) / len(ordered)) ** cohort
        return float(ordered @ np.diff(below)) * self.device_seconds

    def deployed_seconds(self, cohort: int) -> float:
        """Return how long a round takes whose clients train side by side on their devices."""
        return self.transfer_seconds(cohort) + self.training_seconds(cohort)

    def simulated_round_seconds(self, cohort: int) -> float:
        """Return how long the clients of a round train here, on all workers."""
        busy = min(self.workers, cohort)
        return cohort * float(self.steps.mean()) * self.simulated_seconds / busy

    def most_clients(self) -> int:
        """Return up to how many clients the server's link takes no more time than one client."""
        one = 2 * self.client.seconds(self.client_bytes) + self.training_seconds(1)
        room = (one / 2 - self.server.latency) * self.server.bandwidth
        return max(1, int(room / max(1, self.client_bytes)))
