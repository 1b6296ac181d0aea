"""What clients do beside following the gradients of their data: the client's half of algorithms."""

from .base import ClientAlgorithm, Finished, GradientTerm, gradient_term
from .control_variates import ControlVariates
from .fedprox import FedProx, proximal
from .momentum import ClientMomentum, client_momentum

__all__ = [
    "ClientAlgorithm",
    "ClientMomentum",
    "ControlVariates",
    "FedProx",
    "Finished",
    "GradientTerm",
    "client_momentum",
    "gradient_term",
    "proximal",
]
