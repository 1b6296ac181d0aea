"""Where the files of a deployment are, below one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .node_pool import node_name

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """The paths of a deployment in `root`, which is absolute."""

    root: Path

    @property
    def app(self) -> Path:
        """The app folder, which `flwr run` sends."""
        return self.root / "app"

    @property
    def certificates(self) -> Path:
        """The authority's certificate; the server's, and its private key."""
        return self.root / "certificates"

    @property
    def flower(self) -> Path:
        """The home of the server's Flower: its connections and what it has unpacked."""
        return self.root / "flower"

    @property
    def server(self) -> Path:
        """The data of the server: what it evaluates on, and counts of the clients' rows."""
        return self.root / "server"

    @property
    def run(self) -> Path:
        """The run's directory, on the server."""
        return self.root / "run"

    @property
    def simulation(self) -> Path:
        """The directory of the same run, simulated, with which a trial compares."""
        return self.root / "simulation"

    @property
    def logs(self) -> Path:
        """What Flower's programs print in a trial."""
        return self.root / "logs"

    def node(self, client: int) -> Path:
        """Return the data folder of a client's node."""
        return self.root / "nodes" / node_name(client)

    def key(self, client: int) -> Path:
        """Return the private key of a client's node; the public one is beside it."""
        return self.root / "keys" / f"{node_name(client)}.key"
