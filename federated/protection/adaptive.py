"""Noise on the sum of updates whose clip follows a quantile of their norms; `privacy.adaptive`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from heliotrope.config import Run
from heliotrope.data import Exchange
from heliotrope.errors import RunFailedError

from ..aggregation import Mean
from ..engine.context import TrainingContext
from ..flower.messages import CLIP
from ..privacy.adaptive import Adaptive
from ..updates import UNCLIPPED, Weights
from .central import NoisySum

__all__ = ["AdaptiveSum"]


class AdaptiveSum(NoisySum):
    """Tells each cohort its clip, and makes the next from the noisy share of the unclipped."""

    def __init__(self, privacy: Adaptive, run: Run, context: TrainingContext, path: Path) -> None:
        super().__init__(privacy, run, context, path)
        self._keys = privacy
        self._clip = privacy.clip  # of the next round
        self._numbers: dict[str, float] = {}  # of the last round

    @classmethod
    def check(  # type: ignore[override]
        cls,
        privacy: Adaptive,
        run: Run,
        context: TrainingContext,
        strategy: Strategy,
        exchange: Exchange,
    ) -> None:
        super().check(privacy, run, context, strategy, exchange)
        cohort, clients = run.federated.clients_per_round, len(context.population.training())
        before = [(each.mechanism, 1) for each in context.releases]
        mechanism = privacy.mechanism(cohort, clients, run.federated.rounds, None, before)
        privacy.update_multiplier(mechanism)

    def begin(self, server_round: int, saved: Mapping[str, Any]) -> None:
        super().begin(server_round, saved.get("ledger", {}))
        self._clip = saved.get("clip", self._clip)

    def told(self, server_round: int) -> dict[str, bool | float]:
        if not 0 < self._clip < math.inf:
            key = self._keys.key
            raise RunFailedError(
                f"{key}.clip became {self._clip:g} after round {server_round - 1}: the noisy share "
                "of updates that were not clipped, which it follows, is mostly noise. Lower "
                f"{key}.count_noise={self._keys.count_deviation(self._cohort):g} to a part of "
                f"federated.clients_per_round={self._cohort}, or {key}.clip_learning_rate="
                f"{self._keys.clip_learning_rate:g}."
            )
        return {**super().told(server_round), CLIP: self._clip}

    def _deviation(self) -> float:
        return self._keys.deviation(self._mechanism, self._clip)

    def release(self, server_round: int, mean: Mean | None, beginning: Weights) -> Mean:
        """Return the round's noisy mean, and take the clip of the next from the noisy count."""
        noisy = super().release(server_round, mean, beginning)
        centred = 0.0
        if mean is not None:
            unclipped = round(float(mean.differences[UNCLIPPED]) * mean.weight)
            centred = unclipped - mean.weight / 2
        noise = self._seeded("privacy of the clip", server_round).standard_normal()
        centred += self._keys.count_deviation(self._cohort) * float(noise)
        share = 0.5 + centred / self._cohort
        self._numbers = {"privacy/clip": self._clip, "privacy/unclipped": share}
        self._clip = self._keys.next_clip(self._clip, share)
        return noisy

    def numbers(self, server_round: int) -> dict[str, float]:
        """Return the bound, the clip that the round had, and the noisy share of the unclipped."""
        return super().numbers(server_round) | self._numbers

    def saved(self) -> dict[str, Any]:
        return {"clip": self._clip, "ledger": super().saved()}

    def result(self) -> dict[str, Any]:
        """Return what result.json says: `clip` is that of a round that would follow."""
        return super().result() | {
            "clip": self._clip,
            "clip_start": self._keys.clip,
            "quantile": self._keys.quantile,
            "noise_multiplier_of_updates": self._keys.update_multiplier(self._mechanism),
            "count_noise": self._keys.count_deviation(self._cohort),
        }
