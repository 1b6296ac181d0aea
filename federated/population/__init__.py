"""Who the clients are, and who of them is drawn."""

from .clients import Population

__all__ = ["Population"]
