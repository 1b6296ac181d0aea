"""The keys of `federated/secure_aggregation=secagg`, and what a cohort must be for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from heliotrope.errors import ConfigError

from .graph import degree_of
from .messages import Setup
from .primitives import KEY_BYTES, random_bytes
from .quantization import Quantizer

__all__ = ["DEFAULT_RANGE", "SecAgg"]

_KEY = "federated.secure_aggregation"
DEFAULT_RANGE = 4.0
_LARGEST = 1e38  # about the largest float32; sums are then finite
_PRECISION = 256  # parts of the range that the mean must be right to


@dataclass(frozen=True)
class SecAgg:
    """The keys; see `choices.secagg`. Raises `ConfigError` for values that are never possible."""

    threshold: int | None
    neighbours: int | None
    bits: int
    range: float | None

    def __post_init__(self) -> None:
        if self.bits not in (16, 32, 64):
            raise ConfigError(f"{_KEY}.bits={self.bits} is not 16, 32 or 64. Set {_KEY}.bits=32.")
        if self.range is not None and not 0 < self.range <= _LARGEST:
            raise ConfigError(
                f"{_KEY}.range={self.range:g} must be above 0, and at most {_LARGEST:g}."
            )
        if self.neighbours is not None and self.neighbours < 2:
            raise ConfigError(
                f"{_KEY}.neighbours={self.neighbours} leaves a graph that one lost client cuts in "
                f"two. Set {_KEY}.neighbours=2 or more, or null for all others."
            )

    def threshold_of(self, cohort: int) -> int:
        """Return how many of `cohort` clients must be left; `ConfigError` for what is not safe."""
        if cohort < 2:
            raise ConfigError(
                f"federated.clients_per_round={cohort}: the sum of one client is its update. Set "
                "federated.clients_per_round=2 or more, or federated/secure_aggregation=none."
            )
        chosen = 2 * cohort // 3 + 1 if self.threshold is None else self.threshold
        if chosen > cohort:
            raise ConfigError(
                f"{_KEY}.threshold={chosen} is more than federated.clients_per_round={cohort}: no "
                f"round could be opened. Set {_KEY}.threshold={cohort} or less."
            )
        if 2 * chosen <= cohort:
            raise ConfigError(
                f"{_KEY}.threshold={chosen} is no more than half of federated.clients_per_round="
                f"{cohort}: a server could ask one half for what the other must not tell. Set "
                f"{_KEY}.threshold={cohort // 2 + 1} or more."
            )
        return chosen

    def check_neighbours(self, cohort: int) -> None:
        """Raise `ConfigError` if there are not as many others as neighbours are asked for."""
        if self.neighbours is not None and self.neighbours >= cohort:
            raise ConfigError(
                f"{_KEY}.neighbours={self.neighbours}, but a client of a round has "
                f"{cohort - 1} others: federated.clients_per_round={cohort}. Set "
                f"{_KEY}.neighbours={cohort - 1} or less, or null for all others."
            )

    def within(self, needed: float) -> float:
        """Return a range in which there is room for `needed`; `ConfigError` if it is smaller."""
        if self.range is not None and self.range < needed:
            raise ConfigError(
                f"{_KEY}.range={self.range:g}, but federated/privacy=local adds noise to updates, "
                f"with which weights go up to {needed:.4g}: the server would refuse them. Set "
                f"{_KEY}.range=null, which fits the noise."
            )
        return needed if self.range is None else self.range

    def check_precision(self, quantizer: Quantizer) -> None:
        """Raise `ConfigError` if so few bits are left that the mean would be coarse."""
        if self._fine(quantizer):
            return
        enough = next(b for b in (32, 64) if self._fine(replace(quantizer, bits=b)))
        raise ConfigError(
            f"{_KEY}.bits={self.bits} is too few for sums of up to {quantizer.clients:,} clients, "
            f"each within {quantizer.limit:g}: the mean could be wrong by "
            f"{quantizer.error / quantizer.total_weight:.2g} in each weight. Set {_KEY}.bits="
            f"{enough}."
        )

    @staticmethod
    def _fine(quantizer: Quantizer) -> bool:
        return quantizer.error <= quantizer.limit * quantizer.total_weight / _PRECISION

    def setup(self, cohort: int, clients: int, size: int, numbers: int) -> Setup:
        """Return what the `clients` of a new round are told; `cohort` are as many as are expected.

        The threshold is that of the cohort, or in proportion where more take part.
        """
        threshold = -(-self.threshold_of(cohort) * max(clients, cohort) // cohort)
        neighbours = clients - 1 if self.neighbours is None else self.neighbours
        return Setup(
            session=random_bytes(KEY_BYTES),
            threshold=threshold,
            neighbours=degree_of(neighbours, clients),
            bits=self.bits,
            size=size,
            numbers=numbers,
        )
