"""Flower's own programs: started with logs, and stopped by their process ids."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from heliotrope.errors import WorkerError

__all__ = ["Program", "called", "environment", "free_port", "wait_for_port"]

_GRACE = 10.0  # seconds that a program has to end by itself
_BOUND = Path(__file__).with_name("bound_program.py")


def environment(flower_home: Path) -> dict[str, str]:
    """Return that of Flower's programs: their files in `flower_home`, no reports to its makers."""
    programs = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A running program, in a process group of its own with all that it starts.

    It is told to end when the thread that has started it ends, also if that is killed.

    Parameters
    ----------
    name
        For messages.
    command
        The program and its arguments; Flower's programs are found beside this Python.
    env
        Its environment.
    log
        The file that its output is added to.
    """

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path
    ) -> None:
        self.name, self.log = name, log
        bound = [sys.executable, "-I", str(_BOUND), str(os.getpid()), *command]
        with log.open("ab") as file:
            self._begin = file.tell()
            self._process = subprocess.Popen(
                bound,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id, which is the group's too."""
        return self._process.pid

    def ended(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._process.poll()

    def check(self) -> None:
        """Raise `WorkerError` with the end of the log if it has ended."""
        code = self.ended()
        if code is not None:
            raise WorkerError(
                f"{self.name} has ended with exit code {code}. The end of {self.log}:\n"
                f"{self.tail()}"
            )

    def said(self) -> str:
        """Return what it has printed; not what others before it have added to the log."""
        with self.log.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")

    def tail(self, lines: int = 12) -> str:
        """Return the last lines that it has printed."""
        return "\n".join(self.said().splitlines()[-lines:])

    def stop(self) -> None:
        """End the program and all that it has started; returns when it has ended."""
        for sign, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                break
        with suppress(ProcessLookupError):  # what it has started and left behind
            os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it as a crash would: at once, and without a word to anybody."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def wait_for_port(program: Program, port: int, seconds: float, host: str = "127.0.0.1") -> None:
    """Return when `program` listens; `WorkerError` if it ends, or does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        program.check()
        with suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.1)
    raise WorkerError(
        f"{program.name} does not listen on port {port} after {seconds:g} s. The end of "
        f"{program.log}:\n{program.tail()}"
    )


def called(command: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Run a command of `flwr` that answers in JSON; `WorkerError` if it fails."""
    done = subprocess.run(
        [*command, "--format", "json"], env=dict(env), capture_output=True, text=True, check=False
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        answer = {}
    if done.returncode or not answer.get("success"):
        said = answer.get("error-message") or (done.stderr or done.stdout).strip()[-2000:]
        raise WorkerError(f"{' '.join(command[:3])} has failed: {said}")
    return answer
