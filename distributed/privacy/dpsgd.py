"""DP-SGD: what is clipped, which noise is added, and what the promise rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from heliotrope.privacy.keys import RecordKeys

__all__ = ["DpSgd"]


@dataclass(frozen=True)
class DpSgd(RecordKeys):
    """The keys of `distributed/privacy=dpsgd`; see `choices.dpsgd`."""

    key: ClassVar[str] = "distributed.privacy"

    def assumptions(self) -> list[str]:
        """Return what the figure depends on, a sentence each."""
        return [
            "a record is one training example; how many there are is public",
            "each step draws every example by itself, with the same probability, in secret",
            "only models are released: losses and evaluations carry no noise, and stay inside",
        ]
