"""How many CPUs and threads a process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from heliotrope.system import resources
from heliotrope.system.cpu_quota import cpu_quota
from heliotrope.system.resources import available_cpus, threads_of
from tests.support import environment


def _process(folder: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write a process's folder of /proc, and files of control groups, mounted in `folder`."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    process = folder / "proc"
    process.mkdir()
    (process / "cgroup").write_text(groups)
    (process / "mountinfo").write_text(mounts.replace("AT", str(folder)))
    return process


_V1 = (
    "32 31 0:29 {root} AT/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / AT/cpuset rw - cgroup cgroup rw,cpuset\n"
)
_V2 = "30 23 0:26 / AT/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "quota"),
    [
        ("0::/\n", _V2, {"unified/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", _V2, {"unified/cpu.max": "max 100000\n"}, None),
        ("0::/\n", _V2, {}, None),
        (
            "0::/job/step\n",
            _V2,
            {"unified/job/cpu.max": "200000 100000", "unified/job/step/cpu.max": "max 100000"},
            2.0,
        ),
        (
            "0::/job/step\n",
            _V2,
            {"unified/job/cpu.max": "800000 100000", "unified/job/step/cpu.max": "50000 100000"},
            0.5,
        ),
        (
            "4:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n",
            _V1.format(root="/docker/abc"),
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        (
            "4:cpu,cpuacct:/a\n",
            _V1.format(root="/"),
            {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        (
            "4:cpu,cpuacct:/of/the/host\n0::/\n",
            _V1.format(root="/another") + _V2,
            {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "50000\n"},
            5.0,
        ),
    ],
)
def test_the_least_quota_of_a_processs_groups_holds(
    groups: str, mounts: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert cpu_quota(_process(tmp_path, groups, mounts, files)) == quota


def test_a_process_outside_of_linux_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "cpus"), [(None, 8), (3.9, 3), (0.5, 1), (64.0, 8)], ids=str)
def test_a_quota_is_an_upper_bound_on_cpus(
    quota: float | None, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(resources, "cpu_quota", lambda: quota)
    assert available_cpus() == cpus


@pytest.mark.parametrize(
    ("given", "threads"),
    [(None, 8), ("3", 3), ("64", 8), ("2,4", 2), ("", 8), ("0", 8), ("many", 8)],
)
def test_omp_num_threads_is_an_upper_bound_on_threads(
    given: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_of(8) == threads


@pytest.mark.parametrize(("users", "threads"), [(None, 8), ("2", 2)])
def test_the_one_thread_that_torchrun_sets_by_itself_is_no_bound(
    users: str | None, threads: int
) -> None:
    """A parent as torchrun is: it sets the variable, if nobody has, after it has started."""
    worker = "from heliotrope.system.resources import threads_of; print(threads_of(8))"
    agent = (
        "import os, subprocess, sys; os.environ.setdefault('OMP_NUM_THREADS', '1'); "
        "os.environ['TORCHELASTIC_RUN_ID'] = 'x'; "
        f"sys.exit(subprocess.run([sys.executable, '-c', {worker!r}]).returncode)"
    )
    env = environment()
    env.pop("OMP_NUM_THREADS")
    env |= {} if users is None else {"OMP_NUM_THREADS": users}
    done = subprocess.run(
        [sys.executable, "-c", agent], env=env, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == threads
