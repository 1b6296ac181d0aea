"""FLTrust: how far clients are trusted follows from the server's own update (Cao et al. 2021).

arXiv:2012.13995, Algorithm 2. With the server's update g_0 and those of clients g_i:
TS_i = ReLU(cos(g_i, g_0)), and the model moves by
sum_i TS_i (||g_0|| / ||g_i||) g_i / sum_i TS_i.

Shape legend: K clients or buckets of them, D numbers in trained parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from heliotrope.errors import RunFailedError

from ..engine.root import RootClient
from ..flower.messages import content_of
from ..updates import Instruction, Weights, is_finite
from .facts import ModelFacts
from .robust_updates import OfUpdates

__all__ = ["FLTrust", "trusted_mean"]

_log = logging.getLogger(__name__)


class FLTrust(OfUpdates):
    """Needs `root`, who trains for the server: whoever runs the rounds sets it."""

    def __init__(self, facts: ModelFacts, **settings: Any) -> None:
        super().__init__(facts, **settings)
        self.root: RootClient | None = None
        self._asked: tuple[Weights, Instruction] | None = None  # what clients of the round were
        self._kept: Weights = {}  # what the server keeps as a client does

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._asked = content_of(messages[0]) if messages else None
        return messages

    def center(self, updates: Tensor) -> tuple[Tensor, Tensor]:
        """Train the server, and return the trusted mean and how much each is trusted.

        Raises `RunFailedError` if the server's own update is not finite.
        """
        if self.root is None or self._asked is None:
            raise RuntimeError("FLTrust needs its root, and configure_train before a round's end")
        weights, instruction = self._asked
        sent, self._kept = self.root.train(weights, instruction, self._kept)
        number = instruction.server_round
        if not all(map(is_finite, sent.values())):
            raise RunFailedError(
                f"round {number}: the server's own update, from federated.strategy.root_examples, "
                "is not finite, so that nobody can be trusted. Lower optimizer.lr."
            )
        server = self.difference(sent, weights)
        update, shares = trusted_mean(updates, server)
        trusted = int((shares > 0).sum())
        self.numbers = {"trusted": float(trusted)}
        if not server.any():
            _log.warning("round %d: the server's own update is 0: the model stays", number)
        elif not trusted:
            _log.warning("round %d: no client goes the server's way: the model stays", number)
        return update, shares

    def state_dict(self) -> dict[str, Any]:
        """Return what the server keeps as a client does."""
        return {"kept": dict(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self._kept = dict(state["kept"])


def trusted_mean(updates: Tensor, server: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of updates, float64 [K, D], by trust, [D], and each one's share of it, [K].

    All are brought to the length of `server`, [D]. An update of length 0 has no direction and no
    trust; where nobody has any, or `server` has no direction, both are 0.
    """
    length, lengths = server.norm(), torch.linalg.vector_norm(updates, dim=1)
    directions = updates / torch.where(lengths > 0, lengths, 1.0)[:, None]
    scores = (directions @ server / length).clamp(min=0.0) if length > 0 else lengths * 0.0
    shares = scores / scores.sum() if scores.any() else scores
    return length * (shares @ directions), shares
