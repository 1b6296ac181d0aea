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

_TOKEN = "0123456789abcdef" * 2


@dataclass(frozen=True)
class RunningCluster:
    """Where a cluster answers, the home of who started it, and what it has written.

    `home` holds the token that the cluster asks for; `session` is Ray's folder of its logs.
    """

    address: str
    home: Path
    session: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a shell on the cluster's machine has set, beside all else."""
        return {"RAY_ADDRESS": self.address, "HOME": str(self.home)}


@contextlib.contextmanager
def started_cluster(cpus: int, *, token: bool) -> Iterator[RunningCluster]:
    """Start a cluster of one node, as somebody else: with none of this process's settings.

    Nobody finds it who does not know its address: Ray's note of it is in a folder of its own.
    """
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        home, files = Path(folder) / "home", Path(folder) / "t"
        (home / ".ray").mkdir(parents=True)
        if token:
            (home / ".ray" / "auth_token").write_text(_TOKEN)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={files}"]
        command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        clean = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        with (Path(folder) / "output").open("w") as output:
            head = subprocess.Popen(
                [*command, "--disable-usage-stats"],
                cwd=home,
                env={**clean, "HOME": str(home), "RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_until_up(head, Path(folder) / "output")
            yield RunningCluster(f"127.0.0.1:{port}", home, files / "session_latest")
        finally:
            head.terminate()  # it ends the cluster's other processes
            head.wait(30)


def _wait_until_up(head: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + 60
    while "--block" not in output.read_text():  # the last that it says of its start
        assert head.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)
