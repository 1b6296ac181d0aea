"""Signals: heard, held back, and what a process that is ended at once says and leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from heliotrope.system import process_exit
from heliotrope.system.processes import children, end, killed_once_told
from heliotrope.system.signals import held_back, signals_heard
from tests.support import ROOT, environment


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Tests in the background ignore SIGINT, and so would their children; here it is heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_held_back_is_raised_at_the_end() -> None:
    done = []

    def call() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert done == ["all of it"]


def test_a_signal_that_is_held_back_is_not_lost_to_an_error() -> None:
    def call() -> None:
        with held_back():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("broken")

    with signals_heard() as stop:
        with pytest.raises(ValueError, match="broken"):
            call()
        assert stop.signal == signal.SIGTERM


def test_a_second_signal_ends_what_the_first_asked_to_stop() -> None:
    with signals_heard() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked()
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


_DEAF = """
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("deaf", flush=True)
time.sleep(60)
"""


def test_a_child_that_does_not_hear_sigterm_is_killed_once_it_is_sent_one() -> None:
    with subprocess.Popen([sys.executable, "-c", _DEAF], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in children()
        with killed_once_told([child.pid]):
            time.sleep(0.1)
            assert child.poll() is None
            child.terminate()
            assert child.wait(5) == -signal.SIGKILL
    assert child.pid not in children()
    end([child.pid])  # that it is gone is no error


# A command that is in native code, with a child, when the signal comes.
_COMMAND = """
import subprocess, sys, time
from heliotrope.system.process_exit import as_process, saying, stoppable

def main():
    with saying(lambda: print("last words")), {block}:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True)
        time.sleep(60)

as_process(main)
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("to", ["the process", "its group"])
def test_a_process_stopped_where_it_may_be_says_its_words_and_leaves_no_child(
    sent: signal.Signals, code: int, to: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND.format(block="stoppable()")],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as command:
        assert command.stdout is not None
        child = int(command.stdout.readline())
        (os.kill if to == "the process" else os.killpg)(command.pid, sent)
        output, error = command.communicate(timeout=10)
    assert command.returncode == code
    assert output == "last words\n"
    assert error == ("interrupted\n" if code == 130 else "")
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists()


def test_a_wait_that_is_cut_off_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython gives memory that nobody has written for an interrupted wait whose time is over."""
    answers, asked = iter([SimpleNamespace(si_signo=2029270616)]), threading.Event()

    def wait(*_: object) -> object:
        answer = next(answers, None)
        if answer is None:
            asked.set()
        return answer

    left: list[int] = []
    monkeypatch.setattr(signal, "sigtimedwait", wait)
    monkeypatch.setattr(process_exit, "leave_at_once", left.append)
    with process_exit.stoppable():
        assert asked.wait(10)
    assert left == []


_EXITS = """
import atexit
from heliotrope.system.process_exit import as_process

def main():
    atexit.register(lambda: print("exit handler"))
    {end}

as_process(main)
"""


@pytest.mark.parametrize(
    ("end_", "code", "said"),
    [
        ("raise SystemExit(143)", 143, ""),
        ("raise KeyboardInterrupt", 130, ""),
        ("return 130", 130, ""),
        ("return 0", 0, "exit handler\n"),
        ("return 2", 2, "exit handler\n"),
        ("raise SystemExit('no such thing')", 1, "exit handler\n"),
    ],
)
def test_exit_handlers_run_unless_a_signal_ends_the_process(
    end_: str, code: int, said: str
) -> None:
    command = [sys.executable, "-c", _EXITS.format(end=end_)]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (code, said)


def test_a_thread_that_misses_what_is_ended_at_once_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as Ray's, of its server: the last that was seen of a stopped run was a traceback."""

    def end_server(_: list[int]) -> None:
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    monkeypatch.setattr(process_exit, "_leaving", threading.Lock())
    monkeypatch.setattr(process_exit, "_last_words", [])  # of tests before it in this process
    monkeypatch.setattr(process_exit, "_flushed", lambda: None)
    monkeypatch.setattr(process_exit, "end", end_server)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        process_exit.leave_at_once(143)
    assert capsys.readouterr().err == ""
