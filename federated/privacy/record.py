"""Record-level differential privacy inside each client: DP-SGD, and an epsilon for each silo.

Abadi et al. 2016, arXiv:1607.00133. Every local step draws the client's examples one by one, clips
the gradient of each, and adds noise to their sum, before anything leaves the client. What the
server does with the updates tells nothing more of the examples (post-processing).
"""

from __future__ import annotations

from dataclasses import dataclass

from heliotrope.privacy.keys import RecordKeys

from .base import ClientPrivacy

__all__ = ["Record"]


@dataclass(frozen=True)
class Record(RecordKeys, ClientPrivacy):
    """The keys of `federated/privacy=record`; see `choices.record`."""

    def assumptions(self) -> list[str]:
        """Return what the figure depends on, a sentence each."""
        drawn = (
            "each step draws each of a client's examples by itself, with the same probability, in "
            "secret, and the client itself clips and adds the noise"
        )
        released = (
            "only models are released: losses that clients tell and evaluations carry no noise, "
            "and stay inside"
        )
        return [
            "a record is one training example, held by one client; how many each holds is public",
            drawn,
            "which clients take part in a round is public: nothing is gained by drawing them",
            released,
        ]
