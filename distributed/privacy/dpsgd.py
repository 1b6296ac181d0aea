"""DP-SGD: what is clipped, which noise is added, and what the promise rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from heliotrope.privacy.accountant import Mechanism
from heliotrope.privacy.keys import NoiseKeys

__all__ = ["DpSgd"]


@dataclass(frozen=True)
class DpSgd(NoiseKeys):
    """The keys of `distributed/privacy=dpsgd`; see `choices.dpsgd`."""

    key: ClassVar[str] = "distributed.privacy"
    unit: ClassVar[str] = "record"
    everyone: ClassVar[str] = "training examples"

    def mechanism(self, batch: int, examples: int, steps: int, noise: float | None) -> Mechanism:
        """Return the mechanism of a step that expects `batch` of `examples`, of so many `steps`.

        `noise` is the multiplier of a run that goes on; None: as the keys say.
        """
        expected = min(batch, examples)
        return self.with_noise(Mechanism("poisson", 1.0, expected, examples), steps, noise)

    def assumptions(self) -> list[str]:
        """Return what the figure depends on, a sentence each."""
        return [
            "a record is one training example; how many there are is public",
            "each step draws every example by itself, with the same probability, in secret",
            "only models are released: losses and evaluations carry no noise, and stay inside",
        ]
