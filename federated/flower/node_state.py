"""What a deployed client keeps between rounds, in its node's data folder.

A SuperNode holds Flower's own state of a client in memory, for one run of Flower's: it is lost when
the node is started again, and when the server is, which then begins another run of Flower's.
Here each round's state is a file, by our run. A server that goes on from a checkpoint may ask for
a round again, so that the states of the rounds since the last checkpoint stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from heliotrope.errors import RunFailedError
from heliotrope.system.durable import write_whole

__all__ = ["RUN", "NodeState"]

RUN = "run"
"""In a message's config, the name of the run whose state is meant."""

_NAME = re.compile(r"[0-9a-f]{1,32}")
_BEFORE = 2  # checkpoints that a server may go back to: the newest, or the one before a damaged one


class NodeState:
    """The state of one client in the run called `name`.

    Parameters
    ----------
    folder
        Of the node's data.
    name
        Of the run; of hexadecimal digits, since a server says it and it becomes a folder's.
    rounds
        Between two checkpoints of the server.

    Raises
    ------
    ValueError
        For another name.
    """

    def __init__(self, folder: Path, name: str, rounds: int) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{RUN}={name!r:.40} is no name of a run")
        self._folder, self._rounds = folder / "state" / name, rounds

    def before(self, server_round: int) -> dict[str, Tensor] | None:
        """Return what was kept last before a round, [*shape] each; None if nothing was.

        Raises `RunFailedError` if the file cannot be read.
        """
        rounds = [number for number in self._kept() if number < server_round]
        if not rounds:
            return None
        path = self._path(max(rounds))
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunFailedError(
                f"{path} cannot be read: {error}. Remove it for the state before it, or restore it."
            ) from error

    def keep(self, server_round: int, state: Mapping[str, Tensor]) -> None:
        """Keep what a round has left; later ones, which the server has given up, are removed.

        Raises `RunFailedError` if it cannot be written.
        """
        path = self._path(server_round)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, save({name: value.contiguous() for name, value in state.items()}))
            for number in self._superseded(server_round):
                self._path(number).unlink(missing_ok=True)
        except OSError as error:
            raise RunFailedError(
                f"{path} could not be written: {error}. Make room in the node's data folder."
            ) from error

    def _superseded(self, server_round: int) -> list[int]:
        """Return the rounds whose state nobody asks for any more."""
        kept = self._kept()
        oldest = server_round - _BEFORE * self._rounds
        needed = max((number for number in kept if number <= oldest), default=0)
        return [number for number in kept if number > server_round or number < needed]

    def _kept(self) -> list[int]:
        found = self._folder.glob("*.safetensors") if self._folder.is_dir() else ()
        return sorted(int(path.stem) for path in found if path.stem.isdecimal())

    def _path(self, server_round: int) -> Path:
        return self._folder / f"{server_round}.safetensors"
