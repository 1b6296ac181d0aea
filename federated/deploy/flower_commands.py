"""The commands of Flower's own programs: the same in a trial, in scripts, units and containers."""

from __future__ import annotations

from pathlib import Path

from .certificates import CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY
from .layout import Layout

__all__ = [
    "CONNECTION",
    "register_command",
    "run_command",
    "superlink_command",
    "supernode_command",
]

CONNECTION = "heliotrope"
"""The name of the SuperLink in Flower's own config."""


def superlink_command(layout: Layout, host: str, port: int, *, relative: bool = False) -> list[str]:
    """Return the command that starts the SuperLink, with TLS and node authentication.

    `relative`: to the deployment's folder.
    """
    start = layout.root if relative else Path("/")

    def named(path: Path) -> str:
        return f"{path.relative_to(start)}" if relative else f"{path}"

    folder = layout.certificates
    return [
        *("flower-superlink", "--host", host, "--port", str(port)),
        *("--ssl-ca-certfile", named(folder / CA_CERTIFICATE)),
        *("--ssl-certfile", named(folder / SERVER_CERTIFICATE)),
        *("--ssl-keyfile", named(folder / SERVER_KEY)),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        *("--database", named(layout.flower / "superlink.db")),
    ]


def supernode_command(
    address: str, *, certificate: str, key: str, port: str, folder: str
) -> list[str]:
    """Return the command that starts a client's SuperNode.

    Parameters
    ----------
    address
        Of the SuperLink, `host:port`.
    certificate, key
        The authority's certificate, and the node's private key.
    port
        On which it serves its own processes.
    folder
        Of the client's data.
    """
    return [
        *("flower-supernode", "--superlink", address, "--root-certificates", certificate),
        *("--auth-supernode-private-key", key, "--port", port),
        *("--node-config", f'data-folder="{folder}"'),
    ]


def register_command(public_key: str, name: str) -> list[str]:
    """Return the command by which the SuperLink knows the key of a node, and its name."""
    return ["flwr", "supernode", "register", public_key, CONNECTION, "--name", name]


def run_command(app: str) -> list[str]:
    """Return the command that runs the app in a folder, and shows what it prints."""
    return ["flwr", "run", app, CONNECTION, "--stream"]
