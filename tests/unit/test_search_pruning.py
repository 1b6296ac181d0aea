"""When a trial is given up: the rules of optuna's pruners, settled before the trial begins."""

from __future__ import annotations

import math
import random
from pathlib import Path

import optuna
import pytest

from heliotrope.config import TargetConfig
from heliotrope.errors import RunDirectoryError
from heliotrope.runs.clock import Clock
from heliotrope.runs.events import Progress
from heliotrope.runs.outcome import Target
from heliotrope.runs.pruning import PRUNING, Pruning, PruningRule
from heliotrope.search.pruners import Pruner, halving, median, none
from heliotrope.search.trials import Ended
from tests.support import fresh_seed

_METRIC, _LAST = "test/score", 9


def _curve(draw: random.Random, steps: int) -> list[float]:
    level = draw.gauss(0, 1)
    return [level + draw.gauss(0, 0.5) for _ in range(steps)]


def _search(pruner: Pruner, curves: list[list[float]], *, lower: bool) -> list[int]:
    """Return after how many evaluations each trial ends, as our pruner has it."""
    ended: list[Ended] = []
    lengths = []
    for curve in curves:
        watch, seen = Pruning(pruner.rule(ended, _METRIC, lower), len(curve) + 1), {}
        for step, value in enumerate(curve, 1):
            seen[step] = value
            if watch.observe({_METRIC: value}, step):
                break
        lengths.append(len(seen))
        state = "pruned" if watch.pruned else "complete"
        value = None if watch.pruned else curve[-1]
        ended.append(Ended(state, _METRIC, lower, value, seen))
    return lengths


def _with_optuna(
    pruner: optuna.pruners.BasePruner, curves: list[list[float]], *, lower: bool
) -> list[int]:
    study = optuna.create_study(direction="minimize" if lower else "maximize", pruner=pruner)
    lengths = []
    for curve in curves:
        trial, step = study.ask(), 0
        for step, value in enumerate(curve, 1):
            trial.report(value, step)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, curve[-1])
        lengths.append(step)
    return lengths


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of optuna's, where a trial begins with NaN
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (median(), optuna.pruners.MedianPruner()),
        (median(startup_trials=1, warmup=3), optuna.pruners.MedianPruner(1, 3)),
        (halving(), optuna.pruners.SuccessiveHalvingPruner(1, 3)),
        (
            halving(min_resource=2, reduction_factor=2),
            optuna.pruners.SuccessiveHalvingPruner(2, 2),
        ),
        (none(), optuna.pruners.NopPruner()),
    ],
)
def test_a_rule_prunes_what_the_pruner_of_optuna_does(
    ours: Pruner, theirs: optuna.pruners.BasePruner, lower: bool
) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    draw = random.Random(fresh_seed())
    curves = [_curve(draw, _LAST) for _ in range(40)]
    for _ in range(5):
        draw.choice(curves)[draw.randrange(_LAST)] = math.nan
    for curve in curves:  # a trial whose end is not finite has failed, and counts for none
        curve[-1] = 0.0 if math.isnan(curve[-1]) else curve[-1]
    expected = _with_optuna(theirs, curves, lower=lower)
    assert _search(ours, curves, lower=lower) == expected
    assert isinstance(theirs, optuna.pruners.NopPruner) or min(expected) < _LAST


@pytest.mark.parametrize("lower", [True, False])
def test_the_few_trials_that_went_on_when_most_stopped_early_are_no_median(lower: bool) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    draw = random.Random(fresh_seed())
    short = [_curve(draw, 3) for _ in range(3)]
    long = _curve(draw, _LAST)
    ended = [
        Ended("complete", _METRIC, lower, curve[-1], dict(enumerate(curve, 1)))
        for curve in (*short, long)
    ]
    rule = median(startup_trials=3).rule(ended, _METRIC, lower)
    assert rule is not None
    assert sorted(rule.limits) == [1, 2, 3]
    curves = [_curve(draw, draw.choice((2, 3, _LAST))) for _ in range(60)]
    theirs = optuna.pruners.MedianPruner(3, n_min_trials=3)
    expected = _with_optuna(theirs, curves, lower=lower)
    assert _search(median(startup_trials=3), curves, lower=lower) == expected


def _rule(**limits: float) -> PruningRule:
    found = {int(step.removeprefix("at_")): limit for step, limit in limits.items()}
    return PruningRule(_METRIC, lower=False, limits=found, best=True)


def test_a_trial_is_pruned_the_same_after_an_interruption() -> None:
    draw = random.Random(fresh_seed())
    for _ in range(50):
        curve = _curve(draw, _LAST)
        rule = PruningRule(_METRIC, False, dict(enumerate(_curve(draw, _LAST), 1)), best=True)
        whole, cut = Pruning(rule, _LAST), draw.randrange(1, _LAST)
        ends = [whole.observe({_METRIC: value}, step) for step, value in enumerate(curve, 1)]
        first, second = Pruning(rule, _LAST), Pruning(rule, _LAST)
        for step in range(1, cut + 1):
            first.observe({_METRIC: curve[step - 1]}, step)
        second.restore(first.saved())
        assert second.pruned == ends[cut - 1]
        later = [
            second.observe({_METRIC: curve[step - 1]}, step) for step in range(cut + 1, _LAST + 1)
        ]
        assert later == ends[cut:]


def test_limits_between_two_evaluations_are_due_at_the_next() -> None:
    pruning = Pruning(_rule(at_2=0.5), _LAST)
    assert not pruning.observe({_METRIC: 0.1}, 1)
    assert pruning.observe({_METRIC: 0.1}, 4)


def test_what_is_complete_or_has_no_rule_is_not_pruned() -> None:
    assert not Pruning(_rule(at_3=0.5), 3).observe({_METRIC: 0.1}, 3)
    assert not Pruning(None, 3).observe({_METRIC: 0.1}, 1)
    assert not Pruning(_rule(at_1=0.5), 3).observe({"test/other": 0.1}, 1)


def test_a_trial_that_reaches_its_target_is_complete() -> None:
    rule = PruningRule(_METRIC, False, {1: 2.0}, best=True)
    target = Target(TargetConfig(_METRIC, 0.5), {"score": "max"}, Pruning(rule, 3))
    assert target.observe({_METRIC: 0.6}, {"round": 1}, Progress(), Clock())
    assert not target.pruned


def test_a_rule_is_read_as_it_was_written(tmp_path: Path) -> None:
    rule = PruningRule(_METRIC, True, {1: 0.1 + 0.2, 30: -1e-300}, best=False)
    assert PruningRule.read(tmp_path) is None
    rule.write(tmp_path)
    assert PruningRule.read(tmp_path) == rule
    for damaged in ("", "[]", "{}", '{"limits": {"a": 1}}'):
        (tmp_path / PRUNING).write_text(damaged)
        with pytest.raises(RunDirectoryError, match=PRUNING):
            PruningRule.read(tmp_path)
