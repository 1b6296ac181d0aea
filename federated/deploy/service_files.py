"""Start scripts, a Compose file and systemd units, to be read and changed by whoever uses them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import tomli_w

from .certificates import CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY
from .layout import Layout
from .node_pool import node_name

__all__ = [
    "CONNECTION",
    "PORT",
    "superlink_command",
    "write_connection",
    "write_service_files",
]

CONNECTION = "heliotrope"
"""The name of the SuperLink in Flower's own config."""

PORT = 9092
"""Of the SuperLink, for SuperNodes and `flwr` alike."""

_SUPERLINK = "start-superlink.sh"
_CLIENT = "start-client.sh"

_HEAD = """#!/bin/sh
# {what}
set -eu
cd "$(dirname "$0")"
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
"""

_REGISTER = """export FLWR_HOME="$PWD/flower"
for key in keys/*.pub; do
  flwr supernode register "$key" {connection} --name "$(basename "$key" .pub)"
done
"""

_RUN = """export FLWR_HOME="$PWD/flower"
exec flwr run app {connection} --stream "$@"
"""

_START_CLIENT = """name="client-$1"
export FLWR_HOME="$PWD/flower-$name"
exec flower-supernode --superlink {address} --root-certificates certificates/{ca} \\
  --auth-supernode-private-key "keys/$name.key" --port "$((9093 + $1))" \\
  --node-config "data-folder=\\"$PWD/nodes/$name\\""
"""

_UNIT = """[Unit]
Description={what}
After=network-online.target
Wants=network-online.target

[Service]
Environment=PATH={path}
ExecStart={command}
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
"""


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


def write_connection(layout: Layout, address: str) -> None:
    """Write where `flwr` finds the SuperLink: Flower's own config, of the server's machine."""
    layout.flower.mkdir(parents=True, exist_ok=True)
    certificate = f"{layout.certificates / CA_CERTIFICATE}"
    connection = {"address": address, "root-certificates": certificate}
    config = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    (layout.flower / "config.toml").write_text(tomli_w.dumps(config))


def write_service_files(layout: Layout, host: str, clients: int) -> None:
    """Write the files by which a deployment is started on its machines.

    Parameters
    ----------
    layout
        Where they go.
    host
        Under which SuperNodes reach the SuperLink.
    clients
        How many there are.
    """
    address, root = f"{host}:{PORT}", layout.root
    write_connection(layout, address)
    command = superlink_command(layout, "0.0.0.0", PORT, relative=True)  # noqa: S104 - a server's
    start = f'export FLWR_HOME="$PWD/flower"\nexec {shlex.join(command)}\n'
    scripts = {
        _SUPERLINK: ("On the server: the SuperLink, which clients reach.", start),
        "register.sh": (
            "On the server, once: the SuperLink knows the clients' keys.",
            _REGISTER.format(connection=CONNECTION),
        ),
        "run.sh": (
            "On the server: run the experiment. To go on: ./run.sh --run-config resume=true",
            _RUN.format(connection=CONNECTION),
        ),
        _CLIENT: (
            "On the machine of client N, ./start-client.sh N: its SuperNode.",
            _START_CLIENT.format(address=address, ca=CA_CERTIFICATE),
        ),
    }
    for name, (what, text) in scripts.items():
        path = root / name
        path.write_text(_HEAD.format(what=what) + text)
        path.chmod(0o755)
    programs = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    units = {
        "heliotrope-superlink.service": ("Heliotrope's SuperLink", f"{root / _SUPERLINK}"),
        "heliotrope-client@.service": ("Heliotrope's client %i", f"{root / _CLIENT} %i"),
    }
    for name, (what, run) in units.items():
        (root / name).write_text(_UNIT.format(what=what, path=programs, command=run))
    (root / "compose.yaml").write_text(_compose(layout, host, clients))


def _compose(layout: Layout, host: str, clients: int) -> str:
    """Return a Compose file for one machine, where each client sees its own files; JSON is YAML."""
    root = layout.root
    image = "${HELIOTROPE_IMAGE:?name an image in which heliotrope is installed}"

    def service(command: list[str], *mounts: str) -> dict[str, object]:
        volumes = [f"{root / mount.removesuffix(':ro')}:{root}/{mount}" for mount in mounts]
        return {
            "image": image,
            "restart": "on-failure",
            "working_dir": f"{root}",
            "command": command,
            "volumes": volumes,
        }

    server = service([f"./{_SUPERLINK}"], "")
    server |= {"ports": [f"{PORT}:{PORT}"], "networks": {"default": {"aliases": [host]}}}
    services = {"superlink": server}
    for client in range(clients):
        name = node_name(client)
        services[name] = service(
            [f"./{_CLIENT}", str(client)],
            f"{_CLIENT}:ro",
            f"certificates/{CA_CERTIFICATE}:ro",
            f"keys/{name}.key:ro",
            f"nodes/{name}",
        ) | {"depends_on": ["superlink"]}
    return json.dumps({"services": services}, indent=2) + "\n"
