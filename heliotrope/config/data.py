"""Schema of what all datasets have: which it is, and what its preparation is fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omegaconf import MISSING

__all__ = ["DataConfig", "Fit", "OwnDataConfig"]

Fit = Literal["training", "per_client", "none"]
"""What a preparation is fitted to: the training rows, each client's own rows, or nothing."""


@dataclass
class DataConfig:
    """A dataset and how it is prepared.

    Parameters
    ----------
    name
        Of the choice.
    fit
        What scaling, vocabularies and the like are fitted to: the training examples (training),
        each client's numbers to its own examples (per_client), or nothing (none). With per_client,
        validation and test rows are scaled by the training rows of their natural group, and rows
        of none, such as new ones, by those of all clients, which tell what they do for training.
    validation_fraction
        The share of the training examples that is kept out for validation.
    """

    name: str = MISSING
    fit: str = "training"
    validation_fraction: float = 0.0


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
