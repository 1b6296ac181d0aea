"""The watch that says where a step's time goes."""

from __future__ import annotations

import time

import pytest

from heliotrope.system.stopwatch import Stopwatch


def test_each_part_is_given_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 11.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    watch.start()
    watch.lap("data")
    watch.lap("step")
    watch.start()  # what lies between two epochs counts for neither
    watch.lap("data")
    assert watch.seconds == {"data": 1.5, "step": 2.0}
    watch.reset()
    assert watch.seconds == {}
