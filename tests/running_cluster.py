"""A Ray cluster as an administrator starts it: `ray start --head`, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A command with a mount namespace of its own, in which a folder is empty.
_ALONE = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')

_TOKEN = "0123456789abcdef" * 2


@dataclass(frozen=True)
class RunningCluster:
    """Where a cluster answers, the home of who started it, and what it has written.

    `home` holds the token that the cluster asks for; `session` is Ray's folder of its logs;
    `dashboard` is where its job API answers, if it has one.
    """

    address: str
    home: Path
    session: Path
    dashboard: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What a shell on the cluster's machine has set, beside all else."""
        return {"RAY_ADDRESS": self.address, "HOME": str(self.home)}


@contextlib.contextmanager
def started_cluster(
    cpus: int,
    *,
    token: bool,
    jobs: bool = False,
    nodes: int = 1,
    head_cpus: int | None = None,
    hidden: Path | None = None,
) -> Iterator[RunningCluster]:
    """Start a cluster of nodes with `cpus` each, as somebody else: with no setting of this process.

    It takes `jobs` if it is to have a dashboard; its head may have other CPUs. What is below the
    folder `hidden` is on the head alone: the other nodes see an empty folder, which needs root.
    Nobody finds it who does not know its address: Ray's note of it is in a folder of its own.
    """
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as started,
    ):
        home, files = Path(folder) / "home", Path(folder) / "t"
        (home / ".ray").mkdir(parents=True)
        if token:
            (home / ".ray" / "auth_token").write_text(_TOKEN)
        port, dashboard, *agents = _free_ports(2 + nodes)
        head = [f"--port={port}", "--head"]
        head += [f"--include-dashboard={str(jobs).lower()}", f"--dashboard-port={dashboard}"]
        for number, agent in enumerate(agents):
            role = [f"--address=127.0.0.1:{port}"] if number else head
            # Nodes of one folder would take each other's packages away.
            count = head_cpus if head_cpus is not None and number == 0 else cpus
            own = [f"--num-cpus={count}", f"--temp-dir={files}{number or ''}"]
            own.append(f"--dashboard-agent-listen-port={agent}")
            alone = hidden if number else None
            started.enter_context(_node(Path(folder), home, number, [*role, *own], alone))
        url = f"http://127.0.0.1:{dashboard}" if jobs else ""
        yield RunningCluster(f"127.0.0.1:{port}", home, files / "session_latest", url)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _node(
    folder: Path, home: Path, number: int, arguments: list[str], hidden: Path | None
) -> Iterator[None]:
    """Start a node, whose jobs find the Python of this process, and end it after the block."""
    command = [] if hidden is None else [*_ALONE, str(hidden)]
    command += [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments]
    command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    clean = {key: os.environ[key] for key in ("LANG",) if key in os.environ}
    if number and (home / ".ray" / "auth_token").exists():
        clean["RAY_AUTH_MODE"] = "token"  # by itself only a head looks for one
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = folder / f"output-{number}"
    with said.open("w") as output:
        node = subprocess.Popen(
            command,
            cwd=home,
            env={**clean, "PATH": path, "HOME": str(home), "RAY_TMPDIR": str(folder),
                 "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait_until_up(node, said)
        yield
    finally:
        node.terminate()  # it ends the node's other processes
        node.wait(30)


def _wait_until_up(head: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + 60
    while "--block" not in output.read_text():  # the last that it says of its start
        assert head.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)
