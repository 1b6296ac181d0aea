"""The simulated attacks, by name, and what their keys mean."""

from __future__ import annotations

from .kinds import LabelFlip, LittleIsEnough, Mimic, NegativeMean, Scaling

__all__ = ["alie", "ipm", "label_flip", "mimic", "none", "scaling", "sign_flip"]


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


def mimic(*, attackers: int = 1) -> Mimic:
    """All attackers send the update of one honest client (Karimireddy et al. 2022).

    Parameters
    ----------
    attackers
        How many of all clients attack.
    """
    return Mimic("mimic", attackers)
