"""Flower's own server strategies, by name, and what their keys mean."""

from __future__ import annotations

from flwr.serverapp import strategy
from flwr.serverapp.strategy import Strategy

__all__ = [
    "flower_bulyan",
    "flower_fedadagrad",
    "flower_fedadam",
    "flower_fedavg",
    "flower_fedavgm",
    "flower_fedmedian",
    "flower_fedprox",
    "flower_fedtrimmedavg",
    "flower_fedyogi",
    "flower_krum",
    "flower_multikrum",
    "flower_qfedavg",
]


def flower_fedavg() -> Strategy:
    """Flower's own FedAvg, unmodified."""
    return strategy.FedAvg()


def flower_fedprox(*, proximal_mu: float = 0.01) -> Strategy:
    """Flower's own FedProx, unmodified.

    Parameters
    ----------
    proximal_mu
        How strongly clients are drawn to the global weights.
    """
    return strategy.FedProx(proximal_mu=proximal_mu)


def flower_fedadam(
    *, eta: float = 0.01, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3
) -> Strategy:
    """Flower's own FedAdam, unmodified.

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
    return strategy.FedAdam(eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)


def flower_fedyogi(
    *, eta: float = 0.01, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3
) -> Strategy:
    """Flower's own FedYogi, unmodified.

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
    return strategy.FedYogi(eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)


def flower_fedadagrad(*, eta: float = 0.01, tau: float = 1e-3) -> Strategy:
    """Flower's own FedAdagrad, unmodified.

    Parameters
    ----------
    eta
        The server's learning rate.
    tau
        Added to the divisor of a step: the smaller, the more does each weight go its own
        way.
    """
    return strategy.FedAdagrad(eta=eta, tau=tau)


def flower_fedavgm(*, server_learning_rate: float = 1.0, server_momentum: float = 0.9) -> Strategy:
    """Flower's own FedAvgM, unmodified.

    Parameters
    ----------
    server_learning_rate
        How far the server goes along the velocity.
    server_momentum
        How much of the velocity is kept at a round.
    """
    return strategy.FedAvgM(
        server_learning_rate=server_learning_rate, server_momentum=server_momentum
    )


def flower_fedmedian() -> Strategy:
    """Flower's own FedMedian, unmodified."""
    return strategy.FedMedian()


def flower_fedtrimmedavg(*, beta: float = 0.2) -> Strategy:
    """Flower's own FedTrimmedAvg, unmodified.

    Parameters
    ----------
    beta
        The share left out at each end; it must be one client at least.
    """
    return strategy.FedTrimmedAvg(beta=beta)


def flower_krum(*, num_malicious_nodes: int = 0) -> Strategy:
    """Flower's own Krum, unmodified.

    Parameters
    ----------
    num_malicious_nodes
        Clients of a round that may be malicious.
    """
    return strategy.Krum(num_malicious_nodes=num_malicious_nodes)


def flower_multikrum(*, num_malicious_nodes: int = 0, num_nodes_to_select: int = 5) -> Strategy:
    """Flower's own MultiKrum, unmodified.

    Parameters
    ----------
    num_malicious_nodes
        Clients of a round that may be malicious.
    num_nodes_to_select
        Clients whose updates are averaged.
    """
    return strategy.MultiKrum(
        num_malicious_nodes=num_malicious_nodes, num_nodes_to_select=num_nodes_to_select
    )


def flower_bulyan(*, num_malicious_nodes: int = 0) -> Strategy:
    """Flower's own Bulyan, unmodified.

    Parameters
    ----------
    num_malicious_nodes
        Clients of a round that may be malicious.
    """
    return strategy.Bulyan(num_malicious_nodes=num_malicious_nodes)


def flower_qfedavg(client_learning_rate: float, *, q: float = 0.1) -> Strategy:
    """Flower's own QFedAvg, unmodified.

    Parameters
    ----------
    q
        How much clients with a high loss weigh; 0: all alike.
    """
    return strategy.QFedAvg(client_learning_rate=client_learning_rate, q=q)
