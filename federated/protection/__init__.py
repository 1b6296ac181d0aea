"""Protected runs: who is drawn, what clients are told, what is charged, and what is released."""

from .base import Protection
from .kinds import check_protectable, protected

__all__ = ["Protection", "check_protectable", "protected"]
