"""Schema of what all datasets have: which it is, and what its preparation is fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import MISSING

__all__ = ["DataConfig", "Fit", "OwnDataConfig"]

Fit = Literal["training", "per_client", "private", "none"]
"""What a preparation is fitted to: the training rows, each client's own rows, noisy sums of those
rows that are charged as training is, or nothing."""


@dataclass
class DataConfig:
    """A dataset and how it is prepared.

    Parameters
    ----------
    name
        Of the choice.
    fit
        What scaling, vocabularies and the like are fitted to: the training examples (training),
        each client's numbers to its own examples (per_client), noisy sums that count as privacy
        spent (private), or nothing (none). With per_client,
        validation and test rows are scaled by the training rows of their natural group, and rows
        of none, such as new ones, by those of all clients, which tell what they do for training.
    validation_fraction
        The share of the training examples that is kept out for validation.
    fit_noise_multiplier
        With private, the standard deviation of the noise on the sums, in how far the data of one
        client or record can move them.
    fit_bounds
        With private, the least and the largest number of columns, such as {age: [18, 100]}: others
        are cut off there for the sums. They must be known without the data.
    """

    name: str = MISSING
    fit: str = "training"
    validation_fraction: float = 0.0
    fit_noise_multiplier: float | None = None
    fit_bounds: Any = None


@dataclass
class OwnDataConfig(DataConfig):
    """A dataset of a plug-in.

    Parameters
    ----------
    materialise
        Whether items are read once, at the start; if not, inputs are read whenever a batch has
        them, and may be drawn anew each time.
    """

    materialise: bool = True
