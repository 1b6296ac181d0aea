"""Canaries: participants that nobody is, of whom fair coins decide whether they take part.

The coins are drawn from the run's seed before training, and written into the run's directory. They
are a secret of the audit: whoever has them can tell which canaries were there, and of nobody else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from heliotrope.errors import ConfigError, writing
from heliotrope.seeding import numpy_generator

__all__ = ["Canaries"]

_FILE = "canaries.json"


@dataclass(frozen=True)
class Canaries:
    """The canaries of a run.

    Parameters
    ----------
    unit
        What each of them is.
    included
        Whether each takes part.
    """

    unit: Literal["record", "client"]
    included: tuple[bool, ...]

    @classmethod
    def drawn(cls, unit: Literal["record", "client"], count: int, run_seed: int) -> Canaries:
        """Return `count` canaries with their coins."""
        coins = numpy_generator(run_seed, "canary coins").integers(0, 2, size=count)
        return cls(unit, tuple(bool(coin) for coin in coins))

    def __len__(self) -> int:
        return len(self.included)

    def told(self) -> dict[str, Any]:
        """Return what result.json says."""
        return {"unit": self.unit, "planted": len(self), "included": sum(self.included)}

    def line(self) -> str:
        """Return what a user is told before training."""
        return (
            f"canaries: {len(self):,} {self.unit}s of random numbers are planted for an audit, of "
            f"which {sum(self.included):,} take part"
        )

    def write(self, directory: Path) -> None:
        """Write them into a run's directory, before training."""
        path = directory / _FILE
        coins = "".join("1" if coin else "0" for coin in self.included)
        temporary = path.with_suffix(".tmp")
        with writing(path):
            temporary.write_text(json.dumps({"unit": self.unit, "included": coins}) + "\n")
            temporary.replace(path)

    def check(self, directory: Path) -> None:
        """Raise `ConfigError` unless these were written into `directory`."""
        path = directory / _FILE
        remedy = "Train it again with audit.canaries, such as 1000."
        try:
            found: Mapping[str, Any] = json.loads(path.read_text())
            coins = tuple(coin == "1" for coin in found["included"])
        except FileNotFoundError as error:
            raise ConfigError(f"{path} is missing: no coins were drawn. {remedy}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read: {error!r}. {remedy}") from error
        if (found.get("unit"), coins) != (self.unit, self.included):
            raise ConfigError(
                f"{path} has other coins than follow from the run's seed: it was changed, or is "
                f"another run's. {remedy}"
            )
