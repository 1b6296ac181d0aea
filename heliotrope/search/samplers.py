"""What proposes the values of a search's next trial, from what the trials before have reached.

Each returns a `BaseSampler` of optuna, which is imported when one is made: it is an extra.
"""

from __future__ import annotations

from typing import Any

__all__ = ["random", "tpe"]


def tpe(seed: int, *, startup_trials: int = 10) -> Any:
    """Tree-structured Parzen estimator: more like the good trials than like the others.

    (Bergstra et al. 2011, Algorithms for hyper-parameter optimization.)

    Parameters
    ----------
    startup_trials
        So many are drawn at random first.
    """
    from optuna.samplers import TPESampler

    # A trial that runs at the same time counts as a bad one: the next is not like it.
    return TPESampler(n_startup_trials=startup_trials, constant_liar=True, seed=seed)


def random(seed: int) -> Any:
    """Draw each value by itself, evenly, whatever others have reached."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)
