"""Flower's programs end with the process that has started them, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from federated.deploy.processes import Program
from tests.support import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")

_STARTS = """
import os, sys, time
from pathlib import Path
from federated.deploy.processes import Program
program = Program("sleeper", ["sleep", "600"], dict(os.environ), Path(sys.argv[1]))
print(program.pid, flush=True)
time.sleep(600)
"""


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_a_program_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _STARTS, f"{tmp_path / 'log'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert _runs(pid)
        os.kill(starter.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while _runs(pid):
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.05)


def test_a_program_says_what_it_has_printed_and_not_those_before_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for word in ("one", "two"):
        program = Program(word, ["echo", word], dict(os.environ), log)
        deadline = time.monotonic() + 30
        while program.ended() is None:
            assert time.monotonic() < deadline, "it still runs"
            time.sleep(0.05)
        assert (program.ended(), program.said()) == (0, f"{word}\n")
    assert log.read_text() == "one\ntwo\n"
