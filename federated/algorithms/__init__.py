"""What clients do beside following the gradients of their data: the client's half of algorithms."""

from .base import ClientAlgorithm, Finished, GradientTerm, gradient_term
from .control_variates import ControlVariates
from .fedprox import FedProx, proximal

__all__ = [
    "ClientAlgorithm",
    "ControlVariates",
    "FedProx",
    "Finished",
    "GradientTerm",
    "gradient_term",
    "proximal",
]
