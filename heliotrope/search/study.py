"""What a search tries next: asked of optuna, whose study is built anew from the trials so far.

A sampler is made for each trial, with a seed of its own. So what is proposed depends on nothing but
the trials before, and a search that goes on proposes what it would have without a break.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from heliotrope import registry
from heliotrope.errors import ConfigError
from heliotrope.search.space import Dimension, Value
from heliotrope.search.trials import Trial

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["judged_by", "next_values", "refuse_without_optuna"]


def refuse_without_optuna(key: str) -> None:
    """Raise `ConfigError` naming `key` unless optuna is installed; it is not imported."""
    if find_spec("optuna") is None:
        raise ConfigError(
            f"{key} needs the package optuna, which is not installed. Run pip install "
            "'heliotrope[search]', or leave the key out."
        )


def next_values(
    space: Mapping[str, Dimension], sampler: Any, seed: int, trials: Sequence[Trial]
) -> dict[str, Value]:
    """Return the values of the next trial of a search.

    Parameters
    ----------
    space
        A dimension a key.
    sampler
        The choice of `search/sampler`, with its keys.
    seed
        Of the search.
    trials
        All before it, in order; those that have not ended count as running.
    """
    import optuna

    from heliotrope import seeding  # brings torch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    number = len(trials)
    build = registry.entry("sampler", sampler.name).build
    own_seed = seeding.seed(seed, "search", number) % 2**32
    study = optuna.create_study(
        study_name="search",
        direction="minimize" if judged_by(trials)[1] else "maximize",
        sampler=build(vars(sampler), seed=own_seed),
        pruner=optuna.pruners.NopPruner(),
    )
    distributions = {key: dimension.distribution() for key, dimension in space.items()}
    study.add_trials([_frozen(trial, distributions) for trial in trials])
    drawn = study.ask(distributions).params
    return {key: space[key].rounded(value) for key, value in drawn.items()}


def judged_by(trials: Sequence[Trial]) -> tuple[str | None, bool]:
    """Return the metric that trials are judged by, and whether less is better; None: not known."""
    told = (trial.ended for trial in trials if trial.ended and trial.ended.metric)
    first = next(told, None)
    return (None, False) if first is None else (first.metric, bool(first.lower))


def _frozen(trial: Trial, distributions: Mapping[str, Any]) -> FrozenTrial:
    """Return a trial as optuna knows it."""
    from optuna.trial import TrialState, create_trial

    ended = trial.ended
    states = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    return create_trial(
        state=TrialState.RUNNING if ended is None else states[ended.state],
        value=ended.value if ended is not None and ended.state == "complete" else None,
        params=dict(trial.values),
        distributions=dict(distributions),
        intermediate_values={} if ended is None else dict(ended.curve),
    )
