"""The kinds of protection, by name, and what their keys mean."""

from __future__ import annotations

from .adaptive import Adaptive
from .central import Central
from .ftrl import Ftrl
from .local import Local
from .record import Record

__all__ = ["adaptive", "central", "ftrl", "local", "none", "record"]


def none() -> None:
    """No protection: what clients send is added up as it is."""


def central(
    *,
    clip: float = 1.0,
    noise_multiplier: float | None = None,
    delta: float | None = None,
    target_epsilon: float | None = None,
    sampling: str = "poisson",
) -> Central:
    """Client-level differential privacy by a trusted server: clipped updates, a noisy sum.

    (McMahan et al. 2018, arXiv:1710.06963, with a fixed denominator.)

    Parameters
    ----------
    clip
        The Euclidean norm that an update may have; longer ones are scaled down to it.
    noise_multiplier
        Standard deviation of the noise on the sum of updates, in how far one client can move that
        sum: clip with sampling=poisson, 2 clip with sampling=fixed; null: the least that keeps all
        rounds within target_epsilon.
    delta
        The probability with which epsilon may fail, at most 1 in the number of clients; null: that
        number to the power of -1.1, if that is ten or more.
    target_epsilon
        What may be spent: the run stops before it spends more.
    sampling
        poisson: each client is drawn with the same probability, so that clients_per_round is the
        expected number; fixed: always clients_per_round, of which less can be proven.
    """
    return Central(clip, noise_multiplier, delta, target_epsilon, sampling)


def adaptive(
    *,
    clip: float = 0.1,
    noise_multiplier: float | None = None,
    delta: float | None = None,
    target_epsilon: float | None = None,
    sampling: str = "poisson",
    quantile: float = 0.5,
    clip_learning_rate: float = 0.2,
    count_noise: float | None = None,
) -> Adaptive:
    """`central`, with a clip that follows a quantile of the updates' norms.

    (Andrew et al. 2021, arXiv:1905.03871.)

    Parameters
    ----------
    clip
        The Euclidean norm that an update may have in the first round.
    noise_multiplier
        As with `central`, of a round as a whole: updates get a little more noise, since the share
        of updates that were not clipped is told too.
    delta
        As with `central`.
    target_epsilon
        As with `central`.
    sampling
        As with `central`.
    quantile
        The share of updates that the clip is to leave alone; 0.5 is their median.
    clip_learning_rate
        Of the clip, which is multiplied with exp(-rate (share - quantile)) each round.
    count_noise
        Standard deviation of the noise on the number of updates that were not clipped; null: a
        twentieth of clients_per_round.
    """
    return Adaptive(
        clip,
        noise_multiplier,
        delta,
        target_epsilon,
        sampling,
        quantile,
        clip_learning_rate,
        count_noise,
    )


def ftrl(
    *,
    clip: float = 1.0,
    noise_multiplier: float | None = None,
    delta: float | None = None,
    target_epsilon: float | None = None,
    band: int = 16,
) -> Ftrl:
    """Client-level privacy without drawing anybody: clients in turn, noise that partly cancels.

    DP-FTRL (Kairouz et al. 2021, arXiv:2103.00039) with the banded inverse square root
    factorisation (Kalinin et al. 2025, arXiv:2505.12128).

    Parameters
    ----------
    clip
        The Euclidean norm that an update may have; longer ones are scaled down to it.
    noise_multiplier
        Standard deviation of the independent numbers of which the noise on sums is made, in clips;
        null: the least that keeps all rounds within target_epsilon.
    delta
        The probability with which epsilon may fail, at most 1 in the number of clients; null: that
        number to the power of -1.1, if that is ten or more.
    target_epsilon
        What may be spent: the run stops before it spends more.
    band
        Over how many rounds noise is correlated; with 1, rounds have independent noise.
    """
    return Ftrl(clip, noise_multiplier, delta, target_epsilon, band)


def local(
    *,
    clip: float = 1.0,
    noise_multiplier: float | None = None,
    delta: float | None = None,
    target_epsilon: float | None = None,
) -> Local:
    """Local differential privacy: each client adds noise to its own update, for any server.

    Parameters
    ----------
    clip
        The Euclidean norm that an update may have; longer ones are scaled down to it.
    noise_multiplier
        Standard deviation of the noise on each update, in how far apart two updates can be: twice
        the clip; null: the least that keeps each client's rounds within target_epsilon.
    delta
        The probability with which epsilon may fail, at most 1 in the number of clients; null: that
        number to the power of -1.1, if that is ten or more.
    target_epsilon
        What each client may spend: the run stops before one spends more.
    """
    return Local(clip, noise_multiplier, delta, target_epsilon)


def record(
    *,
    clip: float = 1.0,
    noise_multiplier: float | None = None,
    delta: float | None = None,
    target_epsilon: float | None = None,
) -> Record:
    """Record-level differential privacy inside each client: DP-SGD, an epsilon for each silo.

    (Abadi et al. 2016, arXiv:1607.00133.) Each local step draws every example of a client with the
    same probability, so that federated.batch_size is the expected number, by which the sum is
    divided.

    Parameters
    ----------
    clip
        The Euclidean norm that the gradient of one example may have; longer ones are scaled down.
    noise_multiplier
        Standard deviation of the noise on the sum of gradients, in clips; null: for each client
        the least that keeps all of its rounds within target_epsilon.
    delta
        The probability with which epsilon may fail, at most 1 in the number of a client's
        examples; null: for each client that number to the power of -1.1, if it is ten or more.
    target_epsilon
        What each client may spend: it is not drawn for a round that would spend more.
    """
    return Record(clip, noise_multiplier, delta, target_epsilon)
