"""What runs on the nodes that Slurm has given to a job: Ray on each, and the command on the first.

The batch script, which Slurm runs on the first node, becomes this process. It starts Ray here, and
by `srun` on the other nodes, waits for them, and runs the command as a driver of that cluster.

Signals: SIGUSR2, by which Slurm tells that the job's time is almost over or that it makes room for
another, and SIGTERM reach the command as SIGTERM, upon which it saves a checkpoint; then the job
goes back into the queue. SIGINT is the user's: the command saves a checkpoint, and the job ends.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from heliotrope.errors import HeliotropeError, RunFailedError
from heliotrope.system.process_exit import as_process
from heliotrope.system.signals import STOP_CODES

from .ray_nodes import RayNode, alive_nodes, authenticated, head, member, wait_for_answer

__all__ = ["main"]

_POLL_SECONDS = 0.2
_STOP_SECONDS = 10.0  # that Ray on the other nodes may take to end
_FORWARDED = {  # what comes, and what the command is sent
    signal.SIGUSR2: signal.SIGTERM,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
}


class _Signals:
    """The signals that have come, passed on to the command once it runs."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._command: subprocess.Popen[bytes] | None = None
        for number in _FORWARDED:
            signal.signal(number, self._hear)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self.first = self.first or number
        if self._command is not None:
            self._command.send_signal(_FORWARDED[signal.Signals(number)])

    def pause(self, seconds: float) -> None:
        """Sleep; end as the signal would have it if one has come."""
        time.sleep(seconds)
        self.leave()

    def leave(self) -> None:
        """End this process, in order, if a signal has come."""
        if self.first is not None:
            raise SystemExit(128 + _FORWARDED[signal.Signals(self.first)])

    def run(self, command: Sequence[str], environment: Mapping[str, str], node: RayNode) -> int:
        """Run the command to its end, and return its exit code as shells have it."""
        with _ignored(signal.SIGUSR2):  # Slurm may send it to all processes of the job
            process = subprocess.Popen(command, env=dict(environment), start_new_session=True)
        self._command = process
        if self.first is not None:
            self._hear(self.first, None)
        told = False
        while (code := process.poll()) is None:
            time.sleep(_POLL_SECONDS)
            if not told and node.process.poll() is not None:
                told = True
                _tell(f"Ray has ended with exit code {node.process.returncode}.")
        self._command = None
        return 128 - code if code < 0 else code


@contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def main() -> int:
    """Run on the first node, or with --join on another one; return the command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wait-seconds", type=float, default=300.0)
    parser.add_argument("--requeue", action="store_true")
    parser.add_argument("--join", metavar="ADDRESS")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    signals = _Signals()
    try:
        if options.join:
            return _join(options.join, options.folder, options.wait_seconds, signals)
        code = _lead(options.command, options.wait_seconds, signals)
    except HeliotropeError as error:
        _tell(f"error: {error}")
        return error.exit_code
    except SystemExit as error:
        code = int(error.code or 0)
    preempted = signals.first in (signal.SIGUSR2, signal.SIGTERM)
    if options.requeue and preempted and code in STOP_CODES:
        _requeue()
    return code


def _lead(command: Sequence[str], seconds: float, signals: _Signals) -> int:
    """Start Ray on all nodes, run the command, stop Ray; return the command's exit code."""
    nodes, began = int(os.environ["SLURM_JOB_NUM_NODES"]), time.monotonic()
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1
    _tell(
        f"job {os.environ['SLURM_JOB_ID']} on {os.environ['SLURM_JOB_NODELIST']}"
        f"{f', attempt {attempt}' if attempt > 1 else ''}: starting Ray on {nodes} node(s)"
    )
    os.environ.update(authenticated(os.environ))
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    with ExitStack() as stack:
        node = stack.enter_context(head(_own_address(), os.environ, _cpus()))
        others = stack.enter_context(_others(node, nodes - 1, seconds)) if nodes > 1 else None

        def pause(for_seconds: float) -> None:
            if others is not None and others.poll() is not None:
                raise RunFailedError(
                    "Ray did not start on every node of the job: see the lines above."
                )
            signals.pause(for_seconds)

        _wait(node, nodes, began + seconds, pause)
        _tell(f"Ray runs on {nodes} node(s) after {time.monotonic() - began:.1f} s")
        environment = os.environ | {"RAY_ADDRESS": node.address}
        return signals.run(command, environment, node)


def _wait(node: RayNode, nodes: int, deadline: float, pause: Callable[[float], None]) -> None:
    """Return once all nodes have joined; `RunFailedError` if some have not by `deadline`."""

    def watch(seconds: float) -> None:
        node.check()
        pause(seconds)

    wait_for_answer(node.address, max(0.0, deadline - time.monotonic()), watch)
    while (found := alive_nodes(node.address)) < nodes:
        if time.monotonic() > deadline:
            raise RunFailedError(
                f"Of {nodes} nodes {found} joined the Ray cluster in time. Set "
                "cluster.wait_seconds higher, or see that the nodes reach each other."
            )
        watch(_POLL_SECONDS)


@contextmanager
def _others(node: RayNode, count: int, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Have Ray on all nodes but the first inside the block; gives the `srun` that runs them."""
    command = [
        *("srun", "--relative=1", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"),
        f"--cpus-per-task={os.environ.get('SLURM_CPUS_PER_TASK', '1')}",
        *("--kill-on-bad-exit=1", "--unbuffered"),
        *(sys.executable, "-m", f"{__package__}.allocation"),
        *("--join", node.address, "--folder", str(node.folder), f"--wait-seconds={seconds:g}"),
    ]
    with _ignored(signal.SIGUSR2):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()  # a signal would have srun kill them, before they have cleared up
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _join(address: str, folder: Path, seconds: float, signals: _Signals) -> int:
    """Be a node of the cluster until the first node closes our input, or ends."""
    wait_for_answer(address, seconds, signals.pause)
    with member(address, folder, os.environ, _cpus()) as node:
        while not select.select([sys.stdin], [], [], _POLL_SECONDS)[0]:
            node.check()
            signals.leave()
    return 0


def _cpus() -> int | None:
    """Return the CPUs that the job has on this node."""
    cpus = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return int(cpus) if cpus.isdecimal() else None


def _own_address() -> str:
    """Return the address of this node that the other nodes of the job reach."""
    names = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    other = next((name for name in names if name != os.environ.get("SLURMD_NODENAME")), None)
    if other is None:
        return "127.0.0.1"
    try:
        family, _, _, _, at = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
    except OSError as error:
        raise RunFailedError(
            f"{socket.gethostname()} finds no address of {other}, a node of its job: {error}."
        ) from error
    with socket.socket(family, socket.SOCK_DGRAM) as route:
        route.connect(at)  # sends nothing: the system chooses the address it would send from
        return str(route.getsockname()[0])


def _requeue() -> None:
    """Put the job back into the queue, unless Slurm is ending it: cancelled, or out of time."""
    job = os.environ["SLURM_JOB_ID"]
    shown = subprocess.run(
        ["scontrol", "show", "job", job], check=False, capture_output=True, text=True
    )
    if re.search(r"JobState=RUNNING\b", shown.stdout):
        _tell("stopped with a checkpoint: back into the queue, to go on from there")
        subprocess.run(["scontrol", "requeue", job], check=False)


def _tell(line: str) -> None:
    sys.stderr.write(f"heliotrope: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    as_process(main)
