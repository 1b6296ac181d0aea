"""The display shows a run on a terminal and in a pipe, and never brings it down."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliotrope.commands.output import say
from heliotrope.runs.display import Display
from heliotrope.runs.events import Tracker
from heliotrope.system.signals import signals_heard
from tests.support import ROOT, environment

PROGRESS = {"steps": 1, "examples_seen": 8, "bytes_up": 0, "bytes_down": 0}

# Events of a short run with everything that has gone wrong in one: odd characters, NaN, no values.
SHOW = """
import math
from heliotrope.runs.display import Display
with Display("federated [/b] [x]", "round", 2) as display:
    for number in (1, 2):
        display({"event": "start", "time": 0.0})
        display({"event": "train", "round": number, "seconds": 1.0, "train/loss": math.nan})
        accuracy = 0.5 + number / 10
        display({"event": "evaluate", "round": number, "seconds": 2.0, "test/accuracy": accuracy})
        display({"event": "clients", "round": number, "seconds": 2.0, "clients/accuracy": 0.25})
    reason = "[/red] KeyError: [none] [3, 4]"
    display({"event": "failure", "round": 2, "client": 7, "reason": reason})
    display({"event": "unheard of"})
    display.say("the last line [/nothing]")
"""


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def on_a_terminal(script: str) -> tuple[int, str]:
    """Run `script` with a pseudo-terminal for its output; return its code and what it drew."""
    reader, writer = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**environment(), "TERM": "xterm-256color", "COLUMNS": "200"},
        stdin=writer,
        stdout=writer,
        stderr=writer,
    ) as process:
        os.close(writer)
        drawn = b""
        while True:
            try:
                chunk = os.read(reader, 4096)
            except OSError:  # Linux's way of saying that the other end is closed
                break
            if not chunk:
                break
            drawn += chunk
        os.close(reader)
        code = process.wait(60)
    return code, drawn.decode()


class _Unread(io.StringIO):
    """An output that nobody reads."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def write(self, _text: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        return self._descriptor


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[_Unread]:
    with (tmp_path / "out").open("w") as file:
        yield _Unread(file.fileno())


@pytest.mark.usefixtures("piped")
def test_an_output_that_nobody_reads_asks_the_run_to_stop(
    unread: _Unread, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", unread)
    with pytest.raises(SystemExit) as ended, Display("federated x", "round", 2) as display:
        display.say("a line")
    assert ended.value.code == 141
    with signals_heard() as stop, Display("distributed x", "epoch", 2) as display:
        thread = threading.Thread(target=display.say, args=["a line"])
        thread.start()
        thread.join()
        display.say("another line")  # now nothing is written
        assert stop.asked()
        with pytest.raises(SystemExit) as ended:
            stop.leave()
    assert ended.value.code == 141
    assert capsys.readouterr().err.count("the run is stopped: the command that its output") == 2
    with pytest.raises(SystemExit) as ended:
        say("a line of a sweep")
    assert ended.value.code == 141
    with Display("federated x", "round", 2) as display:
        display.over = True
        display.say("where the results are")


def without_colours(drawn: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)


def test_on_a_terminal_there_is_a_bar_that_ends_full() -> None:
    code, drawn = on_a_terminal(SHOW)
    assert code == 0, drawn
    last = without_colours(drawn).rstrip().splitlines()[-1]
    assert "2/2 rounds" in last
    assert "test/accuracy 0.7000" in last
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l"), "the cursor was left hidden"


def test_on_a_terminal_failures_and_messages_are_shown_word_for_word() -> None:
    _, drawn = on_a_terminal(SHOW)
    assert "[/red] KeyError: [none] [3, 4]" in drawn
    assert "the last line [/nothing]" in drawn
    assert "federated [/b] [x]" in drawn


def test_the_cursor_comes_back_when_the_run_breaks() -> None:
    code, drawn = on_a_terminal(
        "from heliotrope.runs.display import Display\n"
        "with Display('t', 'epoch', 3) as display:\n"
        "    raise RuntimeError('broken')\n"
    )
    assert code == 1
    assert "RuntimeError: broken" in re.sub(r"\x1b\[[\d;]*m", "", drawn)
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


@pytest.mark.usefixtures("piped")
def test_in_a_pipe_each_evaluation_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(SHOW, "show", "exec"), {})  # noqa: S102 - the same events as on the terminal
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0].startswith("federated [/b] [x]  round 1/2  2.0 s")
    assert "train/loss nan" in lines[0]
    assert "test/accuracy 0.6000" in lines[0]
    assert "clients/accuracy 0.2500" in lines[1]
    assert lines[4] == "failed round 2, client 7: [/red] KeyError: [none] [3, 4]"
    assert lines[-1] == "the last line [/nothing]"
    assert len(lines) == 6


@pytest.mark.usefixtures("piped")
def test_the_numbers_that_matter_most_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        f"{split}/{name}": n
        for split in ("validation", "test")
        for n, name in enumerate(("rmse", "r2", "mae"), start=1)
    }
    with Display("t", "epoch", 1) as display:
        display({"event": "train", "epoch": 1, "seconds": 1.0, "train/loss": 0.5})
        floats = {name: float(value) for name, value in values.items()}
        display({"event": "evaluate", "epoch": 1, "seconds": 1.0, **floats})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(
        "train/loss 0.5000  validation/rmse 1.0000  validation/r2 2.0000  "
        "test/rmse 1.0000  test/r2 2.0000"
    )


@pytest.mark.usefixtures("piped")
def test_in_a_pipe_long_lines_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("t", "epoch", 1) as display:
        display.say("word " * 200)
        display({"event": "failure", "rank": 0, "epoch": 0, "reason": "x" * 500})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1] == "failed epoch 0, rank 0: " + "x" * 500


@pytest.mark.usefixtures("piped")
def test_it_listens_to_a_tracker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Display("distributed quickstart", "epoch", 5) as display:
        tracker = Tracker(tmp_path / "metrics.jsonl", (display,))
        tracker.emit("train", epoch=1, seconds=0.5, **PROGRESS, **{"train/loss": 0.75})
        tracker.emit("evaluate", epoch=1, seconds=1.0, **PROGRESS, **{"test/accuracy": 0.9})
        tracker.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "distributed quickstart  epoch 1/5  1.0 s  train/loss 0.7500  test/accuracy 0.9000"
    )
