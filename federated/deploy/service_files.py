"""Start scripts, a Compose file and systemd units, to be read and changed by whoever uses them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import tomli_w

from .certificates import CA_CERTIFICATE, address_of
from .flower_commands import (
    CONNECTION,
    register_command,
    run_command,
    superlink_command,
    supernode_command,
)
from .layout import Layout
from .node_pool import node_name

__all__ = ["PORT", "write_connection", "write_service_files"]

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
  {command}
done
"""

_RUN = """export FLWR_HOME="$PWD/flower"
exec {command} "$@"
"""

_START_CLIENT = """name="client-$1"
export FLWR_HOME="$PWD/flower-$name"
exec {command}
"""

_UNIT = """[Unit]
Description={what}
After=network-online.target
Wants=network-online.target

[Service]
Environment={environment}
ExecStart={command}
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
"""


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
    version_6, root = ":" in host, layout.root
    address = f"[{host}]:{PORT}" if version_6 else f"{host}:{PORT}"
    write_connection(layout, address)
    every = "::" if version_6 else "0.0.0.0"  # noqa: S104 - a server's
    command = superlink_command(layout, every, PORT, relative=True)
    start = f'export FLWR_HOME="$PWD/flower"\nexec {shlex.join(command)}\n'
    node = supernode_command(
        address,
        certificate=f"certificates/{CA_CERTIFICATE}",
        key="keys/$name.key",
        port="$((9093 + $1))",
        folder="$PWD/nodes/$name",
    )
    register = register_command("$key", '$(basename "$key" .pub)')
    scripts = {
        _SUPERLINK: ("On the server: the SuperLink, which clients reach.", start),
        "register.sh": (
            "On the server, once: the SuperLink knows the clients' keys.",
            _REGISTER.format(command=_in_shell(register)),
        ),
        "run.sh": (
            "On the server: run the experiment. To go on: ./run.sh --run-config resume=true",
            _RUN.format(command=_in_shell(run_command("app"))),
        ),
        _CLIENT: (
            "On the machine of client N, ./start-client.sh N: its SuperNode.",
            _START_CLIENT.format(command=_in_shell(node)),
        ),
    }
    for name, (what, text) in scripts.items():
        path = root / name
        path.write_text(_HEAD.format(what=what) + text)
        path.chmod(0o755)
    programs = f"PATH={Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    units = {
        "heliotrope-superlink.service": ("Heliotrope's SuperLink", _started(root / _SUPERLINK)),
        "heliotrope-client@.service": ("Heliotrope's client %i", f"{_started(root / _CLIENT)} %i"),
    }
    for name, (what, run) in units.items():
        unit = _UNIT.format(what=what, environment=_in_unit(programs), command=run)
        (root / name).write_text(unit)
    (root / "compose.yaml").write_text(_compose(layout, host, clients))


def _in_shell(command: list[str]) -> str:
    """Return a command for a script: variables are filled in, and are one argument each."""
    words = [word.replace('"', '\\"') if "$(" not in word else word for word in command]
    return " ".join(f'"{word}"' if "$" in word else shlex.quote(word) for word in words)


def _started(script: Path) -> str:
    """Return the command of a unit: its first word may not hold what another one may."""
    return f"/bin/sh {_in_unit(script).replace('$', '$$')}"


def _in_unit(value: object) -> str:
    """Return a word for a systemd unit, in which nothing is filled in (systemd.syntax(7))."""
    text = f"{value}".replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def _compose(layout: Layout, host: str, clients: int) -> str:
    """Return a Compose file for one machine, where each client sees its own files; JSON is YAML."""
    root = f"{layout.root}".replace("$", "$$")  # in which Compose fills in variables
    image = "${HELIOTROPE_IMAGE:?name an image in which heliotrope is installed}"

    address = address_of(host)
    # To a container, this is the container itself unless it has the machine's own network.
    here = host == "localhost" or (address is not None and address.is_loopback)

    def service(command: list[str], *mounts: str) -> dict[str, object]:
        volumes = [f"{root}/{mount.removesuffix(':ro')}:{root}/{mount}" for mount in mounts]
        return {
            **({"network_mode": "host"} if here else {}),
            "image": image,
            "restart": "on-failure",
            "working_dir": root,
            "command": command,
            "volumes": volumes,
        }

    server = service([f"./{_SUPERLINK}"], "")
    if not here:
        server["ports"] = [f"{PORT}:{PORT}"]
    if not here and address is None:  # an address is reached by the port of this machine
        server["networks"] = {"default": {"aliases": [host]}}
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
