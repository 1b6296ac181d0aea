"""metrics.jsonl is strict, survives a torn line, and goes on where a checkpoint left off."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heliotrope.errors import RunFailedError
from heliotrope.runs.clock import Clock
from heliotrope.runs.events import Event, Progress, Tracker, log_to, stop_logging


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_each_event_is_one_line_on_disk_at_once(path: Path) -> None:
    tracker = Tracker(path)
    before = time.time()
    tracker.emit("start", mode="federated", name="a\nb", seed=3)
    (event,) = read(path)  # before any close or sync
    assert event["event"] == "start"
    assert event["name"] == "a\nb"
    assert abs(event["time"] - before) < 5
    tracker.emit("end", status="completed")
    assert [event["event"] for event in read(path)] == ["start", "end"]
    tracker.close()


def test_not_a_number_is_null_at_any_depth(path: Path) -> None:
    tracker = Tracker(path)
    tracker.emit(
        "evaluate",
        loss=math.nan,
        more={"deep": [math.inf, (-math.inf, 1.5)]},
        numpy=np.float64("nan"),
        fine=0.1,
    )
    tracker.close()
    (event,) = read(path)
    assert event["loss"] is None
    assert event["more"] == {"deep": [None, [None, 1.5]]}
    assert event["numpy"] is None
    assert event["fine"] == 0.1


def test_listeners_see_each_event_in_order(path: Path) -> None:
    seen: list[Event] = []
    also: list[str] = []
    tracker = Tracker(path, (seen.append, lambda event: also.append(event["event"])))
    tracker.emit("start", seed=1)
    tracker.emit("end")
    tracker.close()
    assert [event["event"] for event in seen] == also == ["start", "end"]
    assert seen[0]["seed"] == 1


def test_progress_events_carry_the_counts_and_the_unit(path: Path) -> None:
    tracker = Tracker(path)
    counts = Progress(steps=4, examples_seen=40, bytes_up=10, bytes_down=20)
    tracker.progress("train", counts, Clock(seconds_before=100.0), {"round": 2}, loss=0.5)
    tracker.close()
    (event,) = read(path)
    assert event["round"] == 2
    assert (event["steps"], event["examples_seen"]) == (4, 40)
    assert (event["bytes_up"], event["bytes_down"]) == (10, 20)
    assert event["seconds"] >= 100.0
    assert event["loss"] == 0.5


# --- a full disk --------------------------------------------------------------------------


@pytest.fixture
def full(path: Path) -> Path:
    """A file that takes nothing."""
    path.symlink_to("/dev/full")
    return path


def test_an_event_that_does_not_fit_is_a_failure_of_the_run_with_its_cause(full: Path) -> None:
    closed: list[str] = []

    class Listener:
        def __call__(self, event: Event) -> None: ...

        def close(self) -> None:
            closed.append("a listener")

    tracker = Tracker(full, (Listener(),))
    with pytest.raises(RunFailedError, match=r"metrics\.jsonl .*No space left.*resume=true"):
        tracker.emit("start")
    with pytest.raises(RunFailedError, match="could not be written"):
        tracker.close()
    assert closed == ["a listener"]


def test_an_error_under_way_is_not_hidden_by_what_cannot_be_written(full: Path) -> None:
    def train() -> None:
        with Tracker(full) as tracker:
            with contextlib.suppress(RunFailedError):
                tracker.emit("train")
            raise KeyError("the cause")

    with pytest.raises(KeyError, match="the cause"):
        train()
    with pytest.raises(RunFailedError, match="could not be written"), Tracker(full):
        pass


def test_log_lines_that_do_not_fit_are_left_out_quietly(
    full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = log_to(full, "driver")
    logging.getLogger("heliotrope").info("one line")
    stop_logging(handler)
    assert capsys.readouterr().err == ""


# --- resume -------------------------------------------------------------------------------


def test_rewinding_drops_what_came_after_the_checkpoint(path: Path) -> None:
    tracker = Tracker(path)
    tracker.emit("start")
    tracker.emit("train", round=1)
    kept, offset = path.read_bytes(), tracker.offset
    tracker.emit("train", round=2)
    tracker.close()
    with path.open("ab") as file:
        file.write(b'{"event": "evaluate", "rou')  # killed in the middle of a line

    resumed = Tracker(path)
    resumed.rewind(offset)
    assert path.read_bytes() == kept
    resumed.emit("train", round=2)
    resumed.close()
    assert [event.get("round") for event in read(path)] == [None, 1, 2]


def test_offsets_go_on_from_what_the_file_holds(path: Path) -> None:
    first = Tracker(path)
    assert first.offset == 0
    first.emit("start")
    first.close()
    second = Tracker(path)
    assert second.offset == path.stat().st_size > 0
    second.emit("end")
    assert second.offset == path.stat().st_size
    second.rewind(0)
    assert second.offset == path.stat().st_size == 0
    second.close()


def test_rewinding_a_file_that_was_lost_leaves_no_hole(path: Path) -> None:
    tracker = Tracker(path)
    tracker.rewind(5000)  # where the checkpoint says the events ended
    tracker.emit("train", round=7)
    tracker.close()
    assert [event["round"] for event in read(path)] == [7]


def test_the_seconds_of_dropped_events_stay_known(path: Path) -> None:
    tracker = Tracker(path)
    assert tracker.rewind(0) == 0.0
    tracker.progress("train", Progress(), Clock(1000.0), {"round": 1}, **{"train/loss": 1.0})
    offset = tracker.offset
    tracker.progress("train", Progress(), Clock(2000.0), {"round": 2}, **{"train/loss": 1.0})
    tracker.emit("failure", rank=1, reason="killed")
    tracker.close()
    with path.open("ab") as file:
        file.write(b'{"event": "evaluate", "seconds": 30')  # killed in the middle of a line
    for _ in range(3):  # nor has one of them come to an event of its own
        with Tracker(path) as resumed:
            assert resumed.rewind(offset) >= 2000.0
    assert [event.get("round") for event in read(path)] == [1, None]


# --- run.log ------------------------------------------------------------------------------


def test_log_lines_say_who_and_stop_when_asked(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("from an earlier attempt\n")
    logger = logging.getLogger("some.module")
    handler = log_to(log, "worker 3")
    try:
        logger.info("training %s", "now")
    finally:
        stop_logging(handler)
    logger.info("not for the log")
    first, second = log.read_text().splitlines()
    assert first == "from an earlier attempt"
    assert "[worker 3]" in second
    assert "some.module" in second
    assert second.endswith("training now")
