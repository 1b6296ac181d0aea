"""Adaptive clipping: what one client can move, and that the clip goes where the quantile is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from federated.aggregation import Mean, Reduction, mean_of
from federated.engine.client_updates import ClientUpdates
from federated.engine.context import TrainingContext, assemble, divide
from federated.privacy.adaptive import Adaptive, update_noise
from federated.protection.adaptive import AdaptiveSum
from federated.updates import UNCLIPPED, Instruction, Stack
from heliotrope.config import Run
from heliotrope.data import load
from heliotrope.errors import ConfigError, RunFailedError
from heliotrope.privacy.accountant import Mechanism
from heliotrope.tasks import task_of
from tests.support import compose

_CLIENTS = 60


def _setting(*more: str) -> tuple[Run, TrainingContext, Adaptive]:
    run = compose(
        "federated",
        "model.hidden=[4]",
        "federated/partition=iid",
        f"federated.partition.clients={_CLIENTS}",
        "federated.clients_per_round=50",
        "federated/privacy=adaptive",
        "federated.privacy.noise_multiplier=0.5",
        *more,
    )
    dataset = load(run.data, run.seed)
    context = assemble(run, task_of(dataset), dataset.train, divide(run, dataset))
    values = {key: value for key, value in vars(run.federated.privacy).items() if key != "name"}
    return run, context, Adaptive(**values)


def _stack(context: TrainingContext, norms: dict[int, float], weight: int = 7) -> Stack:
    """Return updates of these norms, of clients that claim a weight."""
    start = context.global_weights
    generator = torch.Generator().manual_seed(1)
    each = len(norms)
    ways = {n: torch.randn(each, *v.shape, generator=generator).double() for n, v in start.items()}
    lengths = torch.stack([w.flatten(1).square().sum(1) for w in ways.values()]).sum(0).sqrt()
    scale = torch.tensor(list(norms.values()), dtype=torch.float64) / lengths
    arrays = {
        n: start[n].double() + way * scale.view(-1, *[1] * (way.dim() - 1))
        for n, way in ways.items()
    }
    counts = (1,) * each
    return Stack(tuple(norms), arrays, (weight,) * each, (0.0,) * each, counts, counts, counts)


def _mean(
    context: TrainingContext, instruction: Instruction, stacks: Sequence[Stack]
) -> tuple[Mean, list[int]]:
    """Return the mean of clipped updates, and who is left out."""
    weights, starts = context.global_weights, instruction.starts(context.global_weights)
    reduction = Reduction(starts, context.total_weight)
    failed = []
    for stack in stacks:
        sent = ClientUpdates.of(context)(stack, weights, instruction, rounded=False)
        failed += [failure.client for failure in reduction.add(sent)]
    partial = reduction.partial()
    assert partial is not None
    return mean_of([partial], starts), failed


def test_updates_get_the_noise_of_the_papers_theorem() -> None:
    found = update_noise(1.0, 2 * 5.0)
    assert found == pytest.approx(1.005038, abs=1e-6)
    assert update_noise(1.0, 1.0) is None


@pytest.mark.parametrize(("sampling", "norm", "bit"), [("poisson", 1, 0.5), ("fixed", 2, 1.0)])
def test_sum_and_count_together_are_the_mechanism_that_is_charged(
    sampling: str, norm: float, bit: float
) -> None:
    """With what neighbours' sums and counts can be apart, in the noise of each."""
    keys = Adaptive(0.4, 1.3, None, None, sampling, 0.5, 0.2, 4.0)
    mechanism = keys.mechanism(50, 400, 10, None)
    far = (norm * 0.7 / keys.deviation(mechanism, 0.7), bit / keys.count_deviation(50))
    assert math.hypot(*far) == pytest.approx(1 / 1.3, rel=1e-12)
    assert mechanism == Mechanism(sampling, 1.3, 50, 400)  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "quantile"), [(0.1, 0.5), (10.0, 0.5), (0.1, 0.8)])
def test_the_clip_goes_to_the_quantile_of_the_norms(
    start: float, quantile: float, tmp_path: Path
) -> None:
    run, context, _ = _setting()
    keys = Adaptive(start, 0.5, None, None, "poisson", quantile, 0.2, None)
    norms = np.exp(0.5 * np.random.default_rng(3).standard_normal(_CLIENTS))
    clips = []
    with closing(AdaptiveSum(keys, run, context, tmp_path / "privacy.jsonl")) as protection:
        protection.begin(0, {})
        for number in range(1, 41):
            told = protection.told(number)
            instruction = Instruction(number, equal_weights=True, clip=float(told["clip"]))
            cohort = {client: float(norms[client]) for client in protection.draw(number)}
            mean, _ = _mean(context, instruction, [_stack(context, cohort)])
            protection.release(number, mean, context.global_weights)
            clips.append(protection.numbers(number)["privacy/clip"])
    wanted = float(np.quantile(norms, quantile))
    assert clips[0] == start
    assert np.mean(clips[35:]) == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize("norm", [0.0, 1e-9, 0.3, 1e9, 1e30])
def test_no_client_moves_sum_or_count_by_more_than_is_accounted_for(norm: float) -> None:
    _, context, _ = _setting()
    instruction = Instruction(1, equal_weights=True, clip=0.5)
    others = {0: 0.1, 1: 4.0}
    before, _ = _mean(context, instruction, [_stack(context, others)])
    mine = _stack(context, {2: norm}, weight=10**6)
    after, failed = _mean(context, instruction, [_stack(context, others), mine])
    assert failed == []
    moved = {
        name: after.differences[name] * after.weight - before.differences[name] * before.weight
        for name in after.differences
    }
    bit = float(moved.pop(UNCLIPPED))
    assert bit == pytest.approx(1.0 if norm <= 0.5 else 0.0, abs=1e-9)
    length = math.sqrt(sum(float(value.square().sum()) for value in moved.values()))
    assert length <= 0.5 * (1 + 1e-9)
    assert length == pytest.approx(min(norm, 0.5), rel=1e-5, abs=1e-9)


def test_a_client_who_did_not_move_counts_as_unclipped_and_nan_as_nobody() -> None:
    _, context, _ = _setting()
    stack = _stack(context, {3: 0.0, 4: math.nan, 5: 2.0})
    mean, failed = _mean(context, Instruction(1, equal_weights=True, clip=1.0), [stack])
    assert failed == [4]
    assert mean.clients == (3, 5)
    assert float(mean.differences[UNCLIPPED]) * mean.weight == 1.0


def test_a_round_of_nobody_moves_the_clip_by_noise_alone(tmp_path: Path) -> None:
    run, context, keys = _setting("federated.privacy.count_noise=3")
    shares = []
    with closing(AdaptiveSum(keys, run, context, tmp_path / "privacy.jsonl")) as protection:
        protection.begin(0, {})
        for number in range(1, 401):
            protection.release(number, None, context.global_weights)
            shares.append(protection.numbers(number)["privacy/unclipped"])
    noise = (np.array(shares) - 0.5) * 50
    assert abs(noise.mean()) < 5 * 3 / 20
    assert noise.std() == pytest.approx(3, rel=5 / math.sqrt(800))


def test_a_clip_that_the_noise_on_the_share_drives_away_is_named(tmp_path: Path) -> None:
    run, context, keys = _setting("federated.privacy.count_noise=1e6")
    with closing(AdaptiveSum(keys, run, context, tmp_path / "privacy.jsonl")) as protection:
        protection.begin(0, {})
        protection.release(1, None, context.global_weights)
        with pytest.raises(RunFailedError, match=r"clip became .* Lower .*count_noise=1e\+06"):
            protection.told(2)


@pytest.mark.parametrize(("norm", "moves"), [(0.01, 30 / 2), (9.0, -30 / 2)])
def test_bits_are_centred_for_those_who_came_and_divided_by_those_expected(
    norm: float, moves: float, tmp_path: Path
) -> None:
    """30 clients of 50 expected, all or none of them unclipped, beside a round of nobody."""
    run, context, keys = _setting()
    mean, _ = _mean(
        context,
        Instruction(1, equal_weights=True, clip=0.1),
        [_stack(context, dict.fromkeys(range(30), norm))],
    )
    shares = []
    for name, came in (("some", mean), ("nobody", None)):
        with closing(AdaptiveSum(keys, run, context, tmp_path / name)) as protection:
            protection.begin(0, {})
            protection.release(1, came, context.global_weights)
            shares.append(protection.numbers(1)["privacy/unclipped"])
    assert shares[0] - shares[1] == pytest.approx(moves / 50)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ((1.0, None, None, "poisson", 0.0, 0.2, 5.0), "quantile=0"),
        ((1.0, None, None, "poisson", 1.0, 0.2, 5.0), "quantile=1"),
        ((1.0, None, None, "poisson", 0.5, 0.0, 5.0), "clip_learning_rate=0"),
        ((1.0, None, None, "poisson", 0.5, 0.2, -5.0), "count_noise=-5"),
        ((1.0, None, None, "poisson", 0.5, 0.2, math.nan), "count_noise=nan"),
        ((1.0, None, None, "poisson", 0.5, 0.2, 0.5), r"count_noise=0.5 .* above 0\.5"),
        ((1.0, None, None, "fixed", 0.5, 0.2, 1.0), r"count_noise=1 .* above 1;"),
    ],
)
def test_keys_that_promise_nothing_are_refused(more: tuple[object, ...], named: str) -> None:
    def checked() -> None:
        keys = Adaptive(0.1, *more)  # type: ignore[arg-type]
        keys.update_multiplier(keys.mechanism(20, 100, 1, None))

    with pytest.raises(ConfigError, match=f"federated.privacy.{named}"):
        checked()
