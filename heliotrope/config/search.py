"""Schema of a search: a sweep whose jobs are proposed from what those before have reached."""

from __future__ import annotations

from dataclasses import dataclass, field

from heliotrope.config.groups import PrunerConfig, SamplerConfig

__all__ = ["SearchConfig"]


@dataclass
class SearchConfig:
    """Of a command with `-m`. Off while `trials` is null: then all combinations are run.

    What is searched is written as what a sweep goes over: see `heliotrope.search.space`.

    Parameters
    ----------
    trials
        How many runs there are in the end, those of earlier commands included.
    metric
        What they are judged by, such as validation/accuracy; null: the task's first metric, on the
        validation split if there is one.
    seed
        Of what the sampler draws.
    sampler
        What proposes the values of a trial.
    pruner
        What gives up trials that fall behind others.
    """

    trials: int | None = None
    metric: str | None = None
    seed: int = 0
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig("tpe"))
    pruner: PrunerConfig = field(default_factory=lambda: PrunerConfig("none"))
