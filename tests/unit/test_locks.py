"""Run directories on file systems whose locks behave otherwise, or are those of a dead machine."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

import distributed.communication.worker_lock as fence_module
import heliotrope.runs.directory as directory_module
from distributed.communication import worker_lock
from heliotrope.errors import RunDirectoryError
from heliotrope.runs.directory import RunDirectory
from heliotrope.system.locks import file_system
from tests.support import compose

_FLOCK = fcntl.flock
_RUN = compose("distributed", "experiment=quickstart")


@pytest.fixture
def nfs4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behave as Linux's NFSv4 client, which grants a lock only for what a file is open for."""

    def flock(file: IO[str], operation: int) -> None:
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        wrong = os.O_WRONLY if operation & fcntl.LOCK_SH else os.O_RDONLY
        if mode == wrong:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        _FLOCK(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_file: IO[str], _operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("nfs4")
def test_nfs4_grants_what_a_run_asks_for(tmp_path: Path) -> None:
    home = RunDirectory(tmp_path)
    home.claim(_RUN, "distributed")
    assert home.unprotected is None
    worker_lock.wait_until_clear(tmp_path, pytest.fail)
    with worker_lock.held(tmp_path), worker_lock.held(tmp_path):
        pass
    home.release()


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_run_goes_on_and_says_what_is_missing(tmp_path: Path) -> None:
    home = RunDirectory(tmp_path)
    home.claim(_RUN, "distributed")
    assert home.unprotected is not None
    assert file_system(tmp_path) in home.unprotected
    assert "has no file locks" in home.unprotected
    with worker_lock.held(tmp_path):
        worker_lock.wait_until_clear(tmp_path, pytest.fail)
    home.release()


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_process_of_this_machine_is_refused_while_it_runs(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        _held_by(tmp_path, pid=other.pid)
        home = RunDirectory(tmp_path)
        with pytest.raises(RunDirectoryError, match=f"in use by process {other.pid} on"):
            home.claim(_RUN, "distributed")
        other.kill()
    home.claim(_RUN, "distributed")
    home.release()


def test_the_file_system_is_that_of_the_longest_mount() -> None:
    assert file_system(Path("/proc/self/status")) == "the proc file system at /proc"


def _held_by(directory: Path, pid: int = 77, **who: str) -> None:
    """Let the lock name a process, of this machine unless `boot` is another's."""
    home = RunDirectory(directory)
    home.claim(_RUN, "distributed")
    home.release()
    path = directory / ".lock"
    written = json.loads(path.read_text() or "{}") or vars(directory_module.Holder.this())
    path.write_text(json.dumps({**written, "pid": pid, **who}))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IO[str]]:
    """Hold the lock of `tmp_path` for a process of another machine; yield the open file."""
    monkeypatch.setattr(directory_module, "LEASE", 1.0)
    _held_by(tmp_path, host="node7", boot="another")
    with (tmp_path / ".lock").open("a+") as file:
        _FLOCK(file, fcntl.LOCK_EX)
        yield file


def _later(action: Callable[[], object]) -> None:
    threading.Timer(0.3, action).start()


def test_the_lock_of_a_machine_that_died_is_awaited(
    tmp_path: Path, elsewhere: IO[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _later(elsewhere.close)  # the server has noticed
    home = RunDirectory(tmp_path)
    home.claim(_RUN, "distributed")
    home.release()
    assert f"hydra.run.dir={tmp_path} is in use by process 77 on node7" in capsys.readouterr().err


def test_a_lock_that_is_never_given_back_is_refused_with_the_way_out(
    tmp_path: Path, elsewhere: IO[str]
) -> None:
    home = RunDirectory(tmp_path)
    with pytest.raises(RunDirectoryError, match="process 77 on node7") as refused:
        home.claim(_RUN, "distributed")
    assert f"remove {tmp_path / '.lock'}" in str(refused.value)
    (tmp_path / ".lock").unlink()
    home.claim(_RUN, "distributed")
    home.release()


def test_a_run_that_goes_on_elsewhere_is_refused_as_soon_as_it_shows(
    tmp_path: Path, elsewhere: IO[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "LEASE", 60.0)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    _later(lambda: (tmp_path / "metrics.jsonl").write_text("{}\n{}\n"))
    began = time.monotonic()
    with pytest.raises(RunDirectoryError, match="in use by process 77 on node7"):
        RunDirectory(tmp_path).claim(_RUN, "distributed")
    assert time.monotonic() - began < 30


def test_workers_of_a_machine_that_died_are_awaited_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence_module, "_QUIET", 0.05)
    said: list[str] = []
    with (tmp_path / ".workers").open("a+") as file:
        _FLOCK(file, fcntl.LOCK_SH)
        _later(file.close)
        worker_lock.wait_until_clear(tmp_path, said.append)
    assert len(said) == 1
    assert "waiting up to 120 s" in said[0]


def test_in_a_chroot_no_file_system_is_mounted_above_a_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proc = "24 30 0:22 / /proc rw,relatime shared:5 - proc proc rw\n"
    monkeypatch.setattr(Path, "read_text", lambda _path: proc)
    assert file_system(tmp_path) == f"the file system of {tmp_path}"
