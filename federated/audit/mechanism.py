"""Rounds of a protected run, taken again on chosen updates, to see what they release.

What clips, adds up and adds noise is the run's own. What is given to it are updates that are huge,
opposite, no numbers, or nothing, of cohorts of any size, divided among one lane or several.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.audit.checks import (
    FALSE_ALARM,
    Check,
    Noise,
    check_denominator,
    check_noise,
    check_sensitivity,
)
from heliotrope.config import Run
from heliotrope.config.project import ProjectConfig
from heliotrope.data import Dataset
from heliotrope.privacy.ledger import Ledger
from heliotrope.runs.directory import RunDirectory
from heliotrope.tasks import task_of

from ..aggregation import Reduction, mean_of
from ..engine.client_updates import ClientUpdates
from ..engine.context import TrainingContext, assemble, divide, prepared_for
from ..flower.messages import CLIP, EQUAL_WEIGHTS
from ..privacy.adaptive import Adaptive
from ..privacy.base import ClippedSum
from ..privacy.canaries import with_canary_clients
from ..privacy.central import Central
from ..privacy.ftrl import Ftrl
from ..privacy.names import privacy_of
from ..protection import Protection, protected
from ..updates import Instruction, Stack

__all__ = ["mechanism_checks", "why_not_checked"]

_NUMBERS = 4000  # of noise that are looked at, at least
_ROUNDS = 4  # at least
_LANES = 3
_SIZES = (0, 1, 7, 50)  # of cohorts
_CLAIMED = 10**6  # what a client says that it weighs
_LENGTHS = (0.0, 0.5, 1.0, -1.0, 1e6, -1e6)  # of updates, in clips

_Array = NDArray[np.float64]


def why_not_checked(run: Run) -> str | None:
    """Return why the rounds of a protected run cannot be taken again; None if they can."""
    if type(privacy_of(run.federated)) in (Central, Adaptive, Ftrl):
        return None
    return (
        f"the rounds of federated/privacy={run.federated.privacy.name} are no sums to which the "
        "server adds noise, which is what can be taken again."
    )


def mechanism_checks(run: Run, dataset: Dataset, ledger: Path | None) -> list[Check]:
    """Return what was found of the rounds of `run`; nothing if it is not protected.

    `ledger` is the run's, which stays as it is; None of a run that has not begun.
    """
    if privacy_of(run.federated) is None:
        return []
    alone = replace(run, privacy=ProjectConfig())  # nothing is charged to a project
    partition = divide(run, dataset)
    clients = with_canary_clients(partition, run.audit.canaries, run.seed)
    context = assemble(run, task_of(dataset, run), prepared_for(partition, dataset), clients)
    with tempfile.TemporaryDirectory() as folder:
        copied = RunDirectory(Path(folder)).ledger
        if ledger is not None and ledger.exists():
            shutil.copyfile(ledger, copied)
        with closing(Ledger(copied)) as charged:
            noise = None if charged.latest is None else charged.latest.noise_multiplier
        with protected(alone, context, RunDirectory(Path(folder)), None) as protection:
            assert protection is not None
            protection.begin(0, {})
            return _Replay(run, context, protection, noise).checks()


class _Replay:
    """Takes rounds of a run, and returns what they release."""

    def __init__(
        self, run: Run, context: TrainingContext, protection: Protection, noise: float | None
    ) -> None:
        privacy = privacy_of(run.federated)
        assert isinstance(privacy, ClippedSum)
        cfg, clients = run.federated, len(context.population.training())
        self._context, self._protection = replace(context, canaries=None), protection
        self._updates = ClientUpdates.of(self._context)
        self._start = context.global_weights
        self._cohort, self._clip = cfg.clients_per_round, privacy.clip
        mechanism = privacy.mechanism(self._cohort, clients, cfg.rounds, noise)
        # What was promised, from the ledger and the keys alone: not from what adds the noise.
        reach = 2 if isinstance(privacy, Central) and privacy.sampling == "fixed" else 1
        self._deviation = _multiplier(privacy, mechanism.noise_multiplier, reach, self._cohort)
        self._deviation *= reach * privacy.clip
        self._band = privacy.band if isinstance(privacy, Ftrl) else 1
        self._trained = [
            name
            for name, parameter in context.model.named_parameters()
            if parameter.requires_grad and name in self._start
        ]

    def checks(self) -> list[Check]:
        """Return what was found."""
        size = sum(self._start[name].numel() for name in self._trained)
        rounds = range(1, 1 + max(_ROUNDS, -(-_NUMBERS // size)))
        nothing = [0.0] * 2 * _LANES
        alone = np.stack([self._sum(nothing, number) for number in rounds])
        divided = np.stack([self._sum(nothing, number, _LANES) for number in rounds])
        return [
            check_sensitivity(self._moves(), self._clip),
            self._only_trained(),
            *check_noise(
                [
                    Noise("1 worker", _independent(alone, self._band)),
                    Noise(f"{_LANES} workers", _independent(divided, self._band)),
                ],
                self._deviation,
                FALSE_ALARM,
            ),
            check_denominator(self._denominators(alone[0]), self._cohort),
        ]

    def _moves(self) -> dict[str, float]:
        """Return how far the sum moves when a client joins others, by what that one sends.

        The noise of a round is the same with and without it, and so leaves the difference.
        """
        others = [0.5, -3.0]
        before = self._sum(others, 1)
        moves: dict[str, float] = {}
        for length in (*_LENGTHS, float("nan"), float("inf")):
            moved = float(np.linalg.norm(self._sum([*others, length], 1) - before))
            huge = abs(length) > 1 and np.isfinite(length)
            name = f"an update of {length:g} clips"
            moves[f"huge: {name}" if huge else name] = moved
        return moves

    def _only_trained(self) -> Check:
        """Return whether nothing is released but trained parameters, such as no buffers."""
        released = self._released([1e6, -1e6], 1, 1)
        named = self._context.model.named_parameters(remove_duplicate=False)
        trained = {name for name, parameter in named if parameter.requires_grad}
        others = [name for name in released if name not in trained]
        moved = [name for name in others if bool(released[name].any())]
        return Check(
            "nothing is released beside trained weights",
            not moved,
            "such as buffers and frozen weights",
            f"{len(others)} others stayed" if not moved else f"{', '.join(moved)} moved",
        )

    def _denominators(self, noise: _Array) -> dict[int, float]:
        """Return by what the sum is divided, by how many clients came, who all send nothing."""
        found = {}
        for size in _SIZES:
            divided = self._sum([0.0] * size, 1) / self._cohort
            found[size] = float(noise @ noise / (noise @ divided)) if noise @ divided else 0.0
        return found

    def _sum(self, lengths: Sequence[float], server_round: int, lanes: int = 1) -> _Array:
        """Return the noisy sum of a round, float64 [D]; the lengths of updates are in clips."""
        released = self._released(lengths, server_round, lanes)
        flat = torch.cat([released[name].reshape(-1) for name in self._trained])
        return flat.double().numpy() * self._cohort

    def _released(
        self, lengths: Sequence[float], server_round: int, lanes: int
    ) -> Mapping[str, Tensor]:
        protection = copy.copy(self._protection)  # it may change from round to round
        told = protection.told(server_round)
        clip = told.get(CLIP)
        instruction = Instruction(
            server_round,
            equal_weights=bool(told.get(EQUAL_WEIGHTS, False)),
            clip=None if clip is None else float(clip),
        )
        starts, partials = instruction.starts(self._start), []
        for lane in range(lanes):
            reduction = Reduction(starts, max(self._context.total_weight, len(lengths)))
            if mine := range(len(lengths))[lane::lanes]:
                sent = self._stack(mine, [lengths[client] for client in mine])
                reduction.add(self._updates(sent, self._start, instruction, rounded=False))
            if (partial := reduction.partial()) is not None:
                partials.append(partial)
        mean = mean_of(partials, starts) if partials else None
        released = protection.release(server_round, mean, self._start)
        assert released is not None
        return released.differences

    def _stack(self, clients: Sequence[int], lengths: Sequence[float]) -> Stack:
        """Return what clients send who went so many clips in one direction."""
        sizes = [self._start[name].numel() for name in self._trained]
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
        far = torch.tensor(lengths, dtype=torch.float64) * self._clip / drawn.norm()
        went = torch.split(far[:, None] * drawn, sizes, dim=1)  # [K, size] each
        of = dict(zip(self._trained, went, strict=True))
        first: dict[int, str] = {}
        arrays = {}
        for name, value in self._context.model.state_dict(keep_vars=True).items():
            if name not in self._start:
                continue
            start = self._start[name].expand(len(clients), *value.shape)
            own = of.get(first.setdefault(id(value), name))
            moved = start.double() + (1000 if own is None else own.view(start.shape))
            arrays[name] = moved.to(value.dtype)
        count = len(clients)
        ones = (1,) * count
        claimed = (_CLAIMED,) * count
        return Stack(tuple(clients), arrays, claimed, (0.0,) * count, ones, ones, ones)


def _multiplier(privacy: ClippedSum, noise: float, reach: int, cohort: int) -> float:
    """Return the noise of the updates, where a part of a round's is spent on a count of clients.

    Theorem 1 of Andrew et al. 2021, arXiv:1905.03871.
    """
    if not isinstance(privacy, Adaptive):
        return noise
    count_noise = cohort / 20 if privacy.count_noise is None else privacy.count_noise
    return float((noise**-2 - (reach / 2 / count_noise) ** 2) ** -0.5)


def _independent(noise: _Array, band: int) -> _Array:
    """Return the numbers z that the noise of rounds, [R, D], is made of: independent, [R, D].

    The noise of round t is the sum over k < `band` of c_k z_{t-k}, where c are the coefficients of
    the power series of (1 - x)^(1/2).
    """
    from scipy.special import binom  # here: it takes a second to import

    found = np.empty_like(noise)
    for number in range(len(noise)):
        lags = range(1, min(band, number + 1))
        earlier = [(-1) ** lag * binom(0.5, lag) * found[number - lag] for lag in lags]
        found[number] = noise[number] - sum(earlier)
    return found
