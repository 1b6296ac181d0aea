"""Ray on the nodes of one job: started for it alone, and ended without touching any other Ray.

`ray symmetric-run` does not fit: it ends with `ray stop`, which stops every Ray of the user on a
machine that other jobs share; it refuses to start beside one; it keeps to itself why Ray did not
start; it passes no signal on; and it waits 30 s for nodes. Here `ray start --block` runs as a child
on each node, on ports and in a folder of its own.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from heliotrope.errors import RunFailedError
from heliotrope.system.processes import children, end
from heliotrope.system.resources import available_cpus

__all__ = [
    "RayNode",
    "alive_nodes",
    "authenticated",
    "free_port",
    "head",
    "member",
    "wait_for_answer",
]

_POLL_SECONDS = 0.2
_SHOWN_LINES = 30  # of what Ray printed, when it fails


@dataclass(frozen=True)
class RayNode:
    """Ray on this node.

    Parameters
    ----------
    address
        HOST:PORT of the cluster's head.
    folder
        Where Ray keeps its sockets and logs, the same on every node.
    process
        The `ray start --block` that runs it.
    """

    address: str
    folder: Path
    process: subprocess.Popen[bytes]

    def check(self) -> None:
        """Raise `RunFailedError` with what Ray printed if it has ended."""
        code = self.process.poll()
        if code is None:
            return
        try:
            printed = _output(self.folder).read_text(errors="replace").strip().splitlines()
        except OSError:
            printed = []
        shown = "\n  ".join(printed[-_SHOWN_LINES:]) or "(it printed nothing)"
        raise RunFailedError(
            f"Ray on {socket.gethostname()} ended with exit code {code}. It printed:\n  {shown}"
        )


def authenticated(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with a new token, which only the processes of this job have."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    kept = {name: value for name, value in environment.items() if name != "RAY_AUTH_TOKEN_PATH"}
    return kept | token


@contextmanager
def head(host: str, environment: Mapping[str, str], cpus: int | None) -> Iterator[RayNode]:
    """Run the head of a cluster inside the block; `host` is the address that the others reach."""
    folder, port = Path(tempfile.mkdtemp(prefix="ray-")), free_port(host)
    options = ["--head", f"--node-ip-address={host}", f"--port={port}", f"--temp-dir={folder}"]
    with _started(options, f"{host}:{port}", folder, environment, cpus) as node:
        yield node


@contextmanager
def member(
    address: str, folder: Path, environment: Mapping[str, str], cpus: int | None
) -> Iterator[RayNode]:
    """Run a node of the cluster at `address` inside the block; `folder` is that of its head."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _started([f"--address={address}"], address, folder, environment, cpus) as node:
        yield node


@contextmanager
def _started(
    options: Sequence[str],
    address: str,
    folder: Path,
    environment: Mapping[str, str],
    cpus: int | None,
) -> Iterator[RayNode]:
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options),
        f"--num-cpus={min(cpus or available_cpus(), available_cpus())}",
        # Ports that the system chooses: the fixed ones may be those of another job on this node.
        *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        "--disable-usage-stats",
        *(["--include-dashboard=false"] if "--head" in options else []),
    ]
    before = set(children())
    with _output(folder).open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=dict(environment), start_new_session=True
        )
    try:
        yield RayNode(address, folder, process)
    finally:
        ours = set(children()) - before
        end(sorted(ours))
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _output(folder: Path) -> Path:
    return folder / f"start.{socket.gethostname()}.log"


def free_port(host: str) -> int:
    """Return a port of `host`, an address of this machine, where nothing listens."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def wait_for_answer(address: str, seconds: float, pause: Callable[[float], None]) -> None:
    """Return once something listens at HOST:PORT; `pause` sleeps, and may raise.

    Raises `RunFailedError` if nothing does after `seconds`.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunFailedError(
                    f"Ray at {address} has not answered {socket.gethostname()} for {seconds:g} s "
                    f"({error}). Set cluster.wait_seconds higher, or see that the nodes reach each "
                    "other."
                ) from error
        pause(_POLL_SECONDS)


def alive_nodes(address: str) -> int:
    """Return how many nodes are alive, as the head's own table says; 0 if it does not say yet."""
    from ray.exceptions import RpcError

    # As `ray symmetric-run` asks: to connect as a driver would take seconds.
    alive = import_module("ray.core.generated.gcs_pb2").GcsNodeInfo.GcsNodeState.Value("ALIVE")
    try:
        client = import_module("ray._raylet").GcsClient(address=address)
        nodes = client.get_all_node_info(timeout=5)
    except RpcError:  # also of a head that has just ended
        return 0
    return sum(node.state == alive for node in nodes.values())
