"""One clock over the attempts, processes and resumptions of a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from heliotrope.runs import clock
from heliotrope.runs.clock import Clock, Reading, clock_from_now, kept_seconds, process_age
from tests.support import ROOT, environment


def test_the_clock_counts_from_process_start_and_adds_earlier_attempts() -> None:
    age = process_age()
    assert 0.0 < Clock().seconds - age < 5.0
    assert 50.0 < Clock(seconds_before=50.0).seconds - age < 55.0


def test_the_process_age_counts_the_interpreters_start() -> None:
    script = "import time; from heliotrope.runs.clock import process_age; time.sleep(0.3); "
    before = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-c", script + "print(process_age())"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    passed = time.monotonic() - before
    assert 0.3 < float(told.stdout) < passed + 0.05  # the kernel counts in hundredths


def test_the_next_job_of_a_sweep_starts_at_zero() -> None:
    with clock_from_now():
        assert 0.0 <= Clock().seconds < 1.0
    assert Clock().seconds >= process_age() - 1.0


class _Hosts:
    """Hosts whose monotonic and wall clocks have nothing to do with each other; `at` is one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = {"driver": 5000.0, "worker": 70.0}
        self.at = "driver"
        wall = {"driver": 1.8e9, "worker": 1.8e9 - 3600.0}  # an hour slow
        monkeypatch.setattr(clock, "_host", lambda: self.at)
        monkeypatch.setattr(time, "monotonic", lambda: self.now[self.at])
        monkeypatch.setattr(time, "time", lambda: wall[self.at] + self.now[self.at])

    def wait(self, seconds: float) -> None:
        self.now = {host: now + seconds for host, now in self.now.items()}


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> _Hosts:
    return _Hosts(monkeypatch)


def _sent(reading: Reading) -> Reading:
    return Reading(**json.loads(json.dumps(asdict(reading))))


def test_a_process_on_the_same_host_counts_the_time_until_it_was_there(hosts: _Hosts) -> None:
    reading = _sent(Clock(100.0, _started=hosts.now["driver"] - 3.0).read())
    hosts.wait(4.0)
    assert reading.known
    assert Clock.going_on(reading).seconds == pytest.approx(107.0)


def test_a_process_on_another_host_counts_from_when_it_was_told(hosts: _Hosts) -> None:
    driver = Clock(100.0, _started=hosts.now["driver"] - 3.0)
    reading = _sent(driver.read())
    hosts.at = "worker"
    assert not reading.known
    reading = reading.received()
    hosts.wait(4.0)  # such as for the other workers
    worker = Clock.going_on(reading)
    assert worker.seconds == pytest.approx(107.0)
    hosts.at = "driver"
    assert driver.seconds == pytest.approx(107.0)


def test_where_hosts_cannot_be_told_apart_time_counts_from_when_it_was_told(
    hosts: _Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "_host", lambda: None)
    reading = Clock(100.0, _started=hosts.now["driver"]).read()
    hosts.at = "worker"
    assert Clock.going_on(reading).seconds == pytest.approx(100.0)


def test_a_container_with_a_monotonic_clock_of_its_own_is_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace, boot = tmp_path / "time", tmp_path / "boot_id"
    boot.write_text("b06bf452\n")
    monkeypatch.setattr(clock, "_BOOT", boot)
    monkeypatch.setattr(clock, "_TIME_NAMESPACE", namespace)
    namespace.symlink_to("time:[1]")
    reading = Clock().read()
    assert reading.known
    namespace.unlink()
    namespace.symlink_to("time:[2]")
    assert not reading.known
    boot.unlink()  # not Linux
    assert not Clock().read().known


def test_time_on_record_is_added_once_and_after_that_only_caught_up_with(hosts: _Hosts) -> None:
    driver = Clock(_started=hosts.now["driver"] - 3.0)
    driver.resume(60.0)  # of an earlier command
    assert driver.seconds == pytest.approx(63.0)
    hosts.wait(10.0)
    driver.resume(70.0)  # of the attempt before
    assert driver.seconds == pytest.approx(73.0)
    driver.resume(73.5)  # as the worker's host has counted
    assert driver.seconds == pytest.approx(73.5)


def test_what_is_cut_off_leaves_its_time(hosts: _Hosts, tmp_path: Path) -> None:
    def cut_off(after: float) -> None:
        driver = Clock(_started=hosts.now["driver"])
        with driver.kept_in(tmp_path):
            hosts.wait(1.0)
            if after:  # a run of 0 s never began
                driver.resume(kept_seconds(tmp_path))
            hosts.wait(after)
            raise KeyboardInterrupt

    for after, known in ((0.0, 0.0), (6.0, 7.0), (0.0, 7.0), (2.0, 10.0)):
        with pytest.raises(KeyboardInterrupt):
            cut_off(after)
        assert kept_seconds(tmp_path) == pytest.approx(known)


def test_what_was_kept_is_not_needed_to_go_on(tmp_path: Path) -> None:
    assert kept_seconds(tmp_path) == 0.0
    (tmp_path / ".seconds").write_text("")  # the disk was full
    assert kept_seconds(tmp_path) == 0.0
    clock.keep_seconds(tmp_path / "gone", 3.0)
