"""The trials of a search, one after the other: those that were begun before, then new ones."""

from __future__ import annotations

from collections.abc import Mapping

from heliotrope import registry
from heliotrope.config import SearchConfig
from heliotrope.search.journal import Journal
from heliotrope.search.space import Dimension
from heliotrope.search.study import judged_by, next_values
from heliotrope.search.trials import Ended, Trial

__all__ = ["TrialQueue"]


class TrialQueue:
    """Gives out each trial once, noted in the journal before it begins and when it has ended.

    Parameters
    ----------
    journal
        Of the search.
    space
        A dimension a key.
    cfg
        How many trials there are, what proposes them and what prunes them.
    """

    def __init__(self, journal: Journal, space: Mapping[str, Dimension], cfg: SearchConfig) -> None:
        self._journal, self._space, self._cfg = journal, space, cfg
        self._given_out: set[int] = set()

    def next(self) -> Trial | None:
        """Return the next trial; None if there are no more."""
        trials = self._journal.trials
        left = (trial for trial in trials if trial.ended is None)
        trial = next((trial for trial in left if trial.number not in self._given_out), None)
        if trial is None and len(trials) < (self._cfg.trials or 0):
            trial = self._new()
            self._journal.ask(trial)
        if trial is not None:
            self._given_out.add(trial.number)
        return trial

    def tell(self, number: int, ended: Ended) -> None:
        """Take in how a trial has ended."""
        self._journal.tell(number, ended)

    def best(self) -> Trial | None:
        """Return the complete trial with the best value; None if there is none."""
        lower = judged_by(self._journal.trials)[1]
        values = {
            trial.number: trial.ended.value
            for trial in self._journal.trials
            if trial.ended is not None and trial.ended.value is not None
        }
        if not values:
            return None
        number = (min if lower else max)(values, key=lambda number: values[number])
        return self._journal.trials[number]

    def _new(self) -> Trial:
        trials, cfg = self._journal.trials, self._cfg
        values = next_values(self._space, cfg.sampler, cfg.seed, trials)
        metric, lower = judged_by(trials)
        pruner = registry.entry("pruner", cfg.pruner.name).build(vars(cfg.pruner))
        ended = [trial.ended for trial in trials if trial.ended is not None]
        rule = None if metric is None else pruner.rule(ended, metric, lower)
        return Trial(len(trials), values, rule)
