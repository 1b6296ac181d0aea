"""The kinds of protection, by name, and what their keys mean."""

from __future__ import annotations

from .dpsgd import DpSgd

__all__ = ["dpsgd", "none"]


def none() -> None:
    """No protection: gradients are added up as they are."""


def dpsgd(
    *,
    clip: float = 1.0,
    noise_multiplier: float | None = None,
    delta: float | None = None,
    target_epsilon: float | None = None,
) -> DpSgd:
    """Record-level differential privacy: clipped gradients of single examples, a noisy sum.

    (Abadi et al. 2016, arXiv:1607.00133.) Each step draws every training example with the same
    probability, so that distributed.batch_size is the expected number, by which the sum is divided.

    Parameters
    ----------
    clip
        The Euclidean norm that the gradient of one example may have; longer ones are scaled down.
    noise_multiplier
        Standard deviation of the noise on the sum of gradients, in clips; null: the least that
        keeps all epochs within target_epsilon.
    delta
        The probability with which epsilon may fail, at most 1 in the number of training examples;
        null: that number to the power of -1.1, if that is ten or more.
    target_epsilon
        What may be spent: the run stops before an epoch that would spend more.
    """
    return DpSgd(clip, noise_multiplier, delta, target_epsilon)
