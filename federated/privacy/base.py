"""What every choice of `federated/privacy` has: where its keys are, and what clients do for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from heliotrope.privacy.keys import NoiseKeys

from ..aggregation import UpdateTransform

__all__ = ["ClientPrivacy"]


@dataclass(frozen=True)
class ClientPrivacy(NoiseKeys):
    """The keys of a kind of protection; a subclass says whom it protects (`unit`)."""

    key: ClassVar[str] = "federated.privacy"
    everyone: ClassVar[str] = "clients"

    def transforms(self) -> tuple[UpdateTransform, ...]:
        """Return what each client does to its update."""
        return ()
