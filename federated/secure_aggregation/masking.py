"""What clients need to hide what they send: how it becomes whole numbers, and their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .client import Masks
from .quantization import Quantizer

__all__ = ["Masking"]


@dataclass(frozen=True)
class Masking:
    """Of some clients of a round, by number."""

    quantizer: Quantizer
    masks: Mapping[int, Masks]

    def of(self, cohort: Sequence[int]) -> Masking:
        """Return the same for a part of the clients."""
        return replace(self, masks={client: self.masks[client] for client in cohort})
