"""Correlated noise on the sums of clipped updates, by a trusted server; see `privacy.ftrl`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from heliotrope.privacy.mechanisms import CorrelatedSums, GaussianMechanism, noise_weights
from heliotrope.seeding import numpy_generator

from ..privacy.ftrl import CorrelatedNormals
from .central import NoisySum

__all__ = ["CorrelatedNoise"]

_FROM = re.compile(r"(.*) from round (\d+)")


class CorrelatedNoise(NoisySum):
    """Lets clients take part in turn, and makes each round's noise anew from the seeds of several.

    The noise of a round belongs to a stream. A run that goes on as it was goes on with its stream.
    One whose rounds may come out otherwise than those that were released begins another, with
    independent noise, and pays for both: the same noise on two sums would tell their difference.
    """

    _mechanism: CorrelatedSums

    def _renewed(self, stamp: str) -> str:
        """Return the stamp as it is: what has changed is told by the stream."""
        return stamp

    def _continued(self, mechanism: GaussianMechanism, server_round: int) -> CorrelatedSums:
        """Return the mechanism with the stream that goes on after `server_round` rounds."""
        assert isinstance(mechanism, CorrelatedSums)
        latest = self._ledger.latest
        if isinstance(latest, CorrelatedSums):
            stamp, first = _parts(latest.stream)
            if stamp.partition("-")[0] == self._stamp and first <= server_round + 1:
                return replace(mechanism, stream=latest.stream)
        salt = self._ledger.salt(self._stamp)
        own = f"{self._stamp}-{salt:x}" if salt else self._stamp
        return replace(mechanism, stream=f"{own} from round {server_round + 1}")

    def _release(self, server_round: int) -> str:
        return f"round {server_round} {self._mechanism.stream}"

    def _drawn(self, server_round: int) -> list[int]:
        return self._population.draw_in_turn(server_round, self._cohort)

    def _generator(self, server_round: int) -> CorrelatedNormals:
        mechanism = self._mechanism
        _, first = _parts(mechanism.stream)
        place = server_round - first + 1  # in the stream, from 1
        weights = noise_weights(mechanism.band, min(mechanism.band, place)).tolist()
        # Of a target, the multiplier depends on the rounds: with other noise, sums are others too.
        path = (mechanism.stream, repr(mechanism.noise_multiplier))
        return CorrelatedNormals(
            [
                (weight, numpy_generator(self._run.seed, "correlated", server_round - lag, *path))
                for lag, weight in enumerate(weights)
            ]
        )

    def result(self) -> dict[str, Any]:
        """Return what result.json says, with how often a client took part at most."""
        mechanism = self._mechanism
        turns = sum(-(-count // mechanism.separation) for _, count in self._ledger.spent)
        return super().result() | {
            "band": mechanism.band,
            "participations": turns,
            "rounds_between_turns": mechanism.separation,
        }


def _parts(stream: str) -> tuple[str, int]:
    """Return the stamp of a stream's name, and its first round."""
    found = _FROM.fullmatch(stream)
    assert found is not None
    return found[1], int(found[2])
