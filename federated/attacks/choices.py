"""The simulated attacks, by name, and what their keys mean."""

from __future__ import annotations

from .kinds import Backdoor, LabelFlip, LittleIsEnough, Mimic, NegativeMean, Scaling

__all__ = ["alie", "backdoor", "ipm", "label_flip", "mimic", "none", "scaling", "sign_flip"]


def none() -> None:
    """No attackers: all clients do as they are told."""


def label_flip(*, attackers: int = 1) -> LabelFlip:
    """Attackers train on the label C - 1 - y in place of y, of C classes (Fang et al. 2020).

    Parameters
    ----------
    attackers
        How many of all clients attack.
    """
    return LabelFlip("label_flip", attackers)


def sign_flip(*, attackers: int = 1) -> Scaling:
    """Attackers send the negative of their updates (Li et al. 2019, RSA).

    Parameters
    ----------
    attackers
        How many of all clients attack.
    """
    return Scaling("sign_flip", attackers, -1.0)


def scaling(*, attackers: int = 1, factor: float = -50.0) -> Scaling:
    """Attackers send a multiple of their updates.

    Parameters
    ----------
    attackers
        How many of all clients attack.
    factor
        What their updates are multiplied with.
    """
    return Scaling("scaling", attackers, factor)


def alie(*, attackers: int = 1, tau: float = 1.5) -> LittleIsEnough:
    """Attackers send mean + tau std of the honest updates (ALIE, Baruch et al. 2019).

    Parameters
    ----------
    attackers
        How many of all clients attack.
    tau
        Standard deviations of the honest updates, of each coordinate.
    """
    return LittleIsEnough("alie", attackers, tau)


def ipm(*, attackers: int = 1, tau: float = 2.0) -> NegativeMean:
    """Attackers send -tau times the honest mean, inner product manipulation (Xie et al. 2020).

    Parameters
    ----------
    attackers
        How many of all clients attack.
    tau
        How many times the honest mean.
    """
    return NegativeMean("ipm", attackers, tau)


def mimic(*, attackers: int = 1, learning_rounds: int = 20) -> Mimic:
    """All attackers send the update of one honest client (Karimireddy et al. 2022).

    Parameters
    ----------
    attackers
        How many of all clients attack.
    learning_rounds
        Rounds in which they learn whom: who goes farthest along the direction in which honest
        updates differ most.
    """
    return Mimic("mimic", attackers, learning_rounds)


def backdoor(
    *,
    attackers: int = 1,
    target: str | None = None,
    fraction: float = 0.5,
    boost: float = 1.0,
    size: int = 3,
    corner: str = "bottom_right",
    brightness: float = 1.0,
    column: str | None = None,
    value: str | None = None,
) -> Backdoor:
    """Attackers train on stamped examples with the label `target` (Bagdasaryan et al. 2020).

    Parameters
    ----------
    attackers
        How many of all clients attack.
    target
        The class that stamped examples are to be taken for; null: the first.
    fraction
        The share of an attacker's examples that it stamps and relabels, rounded up.
    boost
        What attackers multiply their updates with, so as to replace the model.
    size
        The side of the square that is put on images, in pixels.
    corner
        Where it is: top_left, top_right, bottom_left or bottom_right.
    brightness
        Of its pixels: 0 is black, 1 is white.
    column
        Of a table: the column that is set.
    value
        What it is set to, as the data has it: a number, or a word.
    """
    return Backdoor(
        "backdoor", attackers, target, fraction, boost, size, corner, brightness, column, value
    )
