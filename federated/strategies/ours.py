"""The server strategies of the papers, by name, and what their keys mean."""

from __future__ import annotations

from flwr.serverapp.strategy import Strategy

from . import fltrust as trust
from . import mean, robust, robust_updates
from .facts import ModelFacts
from .qfedavg import QFedAvg
from .scaffold import Scaffold

__all__ = [
    "bulyan",
    "centered_clipping",
    "fedadagrad",
    "fedadam",
    "fedadam_corrected",
    "fedavg",
    "fedavgm",
    "fedmedian",
    "fedprox",
    "fedtrimmedavg",
    "fedyogi",
    "fltrust",
    "geometric_median",
    "krum",
    "multikrum",
    "norm_bounding",
    "qfedavg",
    "scaffold",
]


def fedavg(facts: ModelFacts) -> Strategy:
    """Mean of the clients' weights by examples (McMahan et al. 2017)."""
    return mean.FedAvg(facts)


def fedprox(facts: ModelFacts, *, proximal_mu: float = 0.01) -> Strategy:
    """FedAvg with (mu/2)||w - w_global||^2 added to each client's loss (Li et al. 2020).

    Parameters
    ----------
    proximal_mu
        How strongly clients are drawn to the global weights.
    """
    return mean.FedProx(facts, proximal_mu=proximal_mu)


def fedadam(
    facts: ModelFacts,
    *,
    eta: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
) -> Strategy:
    """Adam on the server, along the mean difference (Reddi et al. 2021).

    Parameters
    ----------
    eta
        The server's learning rate.
    beta_1
        How much of the mean difference is kept at a round.
    beta_2
        How much of the mean of squared differences is kept at a round.
    tau
        Added to the divisor of a step: the smaller, the more does each weight go its own
        way.
    """
    return mean.FedAdam(facts, eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)


def fedadam_corrected(
    facts: ModelFacts,
    *,
    eta: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
) -> Strategy:
    """FedAdam with Adam's bias correction, beginning with v_0 = 0 instead of tau^2.

    Parameters
    ----------
    eta
        The server's learning rate.
    beta_1
        How much of the mean difference is kept at a round.
    beta_2
        How much of the mean of squared differences is kept at a round.
    tau
        Added to the divisor of a step: the smaller, the more does each weight go its own
        way.
    """
    return mean.FedAdamCorrected(facts, eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)


def fedyogi(
    facts: ModelFacts,
    *,
    eta: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
) -> Strategy:
    """Yogi on the server, along the mean difference (Reddi et al. 2021).

    Parameters
    ----------
    eta
        The server's learning rate.
    beta_1
        How much of the mean difference is kept at a round.
    beta_2
        How much of the mean of squared differences is kept at a round.
    tau
        Added to the divisor of a step: the smaller, the more does each weight go its own
        way.
    """
    return mean.FedYogi(facts, eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)


def fedadagrad(facts: ModelFacts, *, eta: float = 0.01, tau: float = 1e-3) -> Strategy:
    """Adagrad on the server, along the mean difference (Reddi et al. 2021).

    Parameters
    ----------
    eta
        The server's learning rate.
    tau
        Added to the divisor of a step: the smaller, the more does each weight go its own
        way.
    """
    return mean.FedAdagrad(facts, eta=eta, tau=tau)


def fedavgm(
    facts: ModelFacts, *, server_learning_rate: float = 1.0, server_momentum: float = 0.9
) -> Strategy:
    """FedAvg with server momentum (Hsu et al. 2019).

    Parameters
    ----------
    server_learning_rate
        How far the server goes along the velocity.
    server_momentum
        How much of the velocity is kept at a round.
    """
    return mean.FedAvgM(
        facts, server_learning_rate=server_learning_rate, server_momentum=server_momentum
    )


def fedmedian(facts: ModelFacts) -> Strategy:
    """Coordinate-wise median of the clients' weights (Yin et al. 2018)."""
    return robust.FedMedian(facts)


def fedtrimmedavg(facts: ModelFacts, *, beta: float = 0.2) -> Strategy:
    """Coordinate-wise mean without a share at each end (Yin et al. 2018).

    Parameters
    ----------
    beta
        The share left out at each end; it must be one client at least.
    """
    return robust.FedTrimmedAvg(facts, beta=beta)


def krum(facts: ModelFacts, *, num_malicious_nodes: int = 0) -> Strategy:
    """Update that is closest to its nearest others (Blanchard et al. 2017).

    Parameters
    ----------
    num_malicious_nodes
        Clients of a round that may be malicious.
    """
    return robust.Krum(facts, num_malicious_nodes=num_malicious_nodes)


def multikrum(
    facts: ModelFacts, *, num_malicious_nodes: int = 0, num_nodes_to_select: int = 5
) -> Strategy:
    """Mean of the updates with the best Krum scores, each counting alike (Blanchard et al. 2017).

    Parameters
    ----------
    num_malicious_nodes
        Clients of a round that may be malicious.
    num_nodes_to_select
        Clients whose updates are averaged.
    """
    return robust.MultiKrum(
        facts, num_malicious_nodes=num_malicious_nodes, num_nodes_to_select=num_nodes_to_select
    )


def bulyan(facts: ModelFacts, *, num_malicious_nodes: int = 0) -> Strategy:
    """Krum again and again, then a mean around the median (El Mhamdi et al. 2018).

    Parameters
    ----------
    num_malicious_nodes
        Clients of a round that may be malicious.
    """
    return robust.Bulyan(facts, num_malicious_nodes=num_malicious_nodes)


def geometric_median(facts: ModelFacts) -> Strategy:
    """Point with the least sum of distances to the updates (RFA, Pillutla et al. 2022)."""
    return robust_updates.GeometricMedian(facts)


def centered_clipping(facts: ModelFacts, *, tau: float = 1.0, iterations: int = 1) -> Strategy:
    """Mean of updates clipped around the round before's update (Karimireddy et al. 2021).

    Parameters
    ----------
    tau
        How far from there an update may be; those farther away are drawn to that distance.
    iterations
        How often a round clips, each time around the result before.
    """
    return robust_updates.CenteredClipping(facts, tau=tau, iterations=iterations)


def norm_bounding(facts: ModelFacts, *, bound: float = 1.0) -> Strategy:
    """Mean of updates clipped to a norm by the server, each counting alike (Sun et al. 2019).

    Parameters
    ----------
    bound
        The norm that an update may have.
    """
    return robust_updates.NormBounding(facts, bound=bound)


def fltrust(facts: ModelFacts, *, root_examples: int = 100) -> Strategy:
    """Mean of updates as long as the server's own, by how far they go its way (Cao et al. 2021).

    Parameters
    ----------
    root_examples
        Training examples that the server keeps for itself, and trains on in each round.
    """
    del root_examples  # whoever divides the data takes them out
    return trust.FLTrust(facts)


def qfedavg(facts: ModelFacts, client_learning_rate: float, *, q: float = 0.1) -> Strategy:
    """q-FedAvg, fairer to clients with a high loss (Li et al. 2020).

    Parameters
    ----------
    q
        How much clients with a high loss weigh; 0: all alike.
    """
    return QFedAvg(facts, client_learning_rate=client_learning_rate, q=q)


def scaffold(facts: ModelFacts, *, server_learning_rate: float = 1.0) -> Strategy:
    """SCAFFOLD: control variates against the drift of clients (Karimireddy et al. 2020).

    Clients count alike, whatever their examples. Each keeps a control variate of the size of the
    model, and twice the model is sent each way.

    Parameters
    ----------
    server_learning_rate
        How far the server goes along the clients' mean difference.
    """
    return Scaffold(facts, server_learning_rate=server_learning_rate)
