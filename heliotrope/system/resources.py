"""What the machine has, and each worker's share of it."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from heliotrope.errors import ResourceError
from heliotrope.system.cpu_quota import cpu_quota

if TYPE_CHECKING:
    import torch

__all__ = [
    "available_cpus",
    "check_cpus",
    "machine",
    "peak_rss_bytes",
    "pick_device",
    "threads_of",
]


def available_cpus() -> int:
    """Return the number of CPUs this process may use: its own, within its container's quota."""
    cpus, quota = len(os.sched_getaffinity(0)), cpu_quota()
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def threads_of(cpus: int) -> int:
    """Return how many threads a process with `cpus` CPUs runs: `OMP_NUM_THREADS` at most.

    The 1 that torchrun sets where its user has set nothing is no wish of anybody's.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # of the outer level
    if not given.isdecimal() or int(given) == 0 or _set_by_torchrun():
        return cpus
    return min(cpus, int(given))


def _set_by_torchrun() -> bool:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        started_with = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return not any(variable.startswith(b"OMP_NUM_THREADS=") for variable in started_with)


def check_cpus(key: str, workers: int, cpus_each: int, cpus: int) -> None:
    """Refuse more workers than CPUs; `key` is the configuration key to name."""
    if workers * cpus_each > cpus:
        raise ResourceError(
            f"{key}={workers} with {cpus_each} CPU(s) each needs {workers * cpus_each} CPUs, "
            f"but there are {cpus}. Set {key} to at most {max(1, cpus // cpus_each)}."
        )


def pick_device(name: str) -> torch.device:
    """Return the device that `device=name` means here; `ResourceError` if there is none."""
    import torch  # here: counting CPUs need not wait for it

    if name == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device=cuda, but torch sees no GPU here. Set device=auto or cpu.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def machine() -> dict[str, str | int]:
    """Return what figures measured here should be read with: processor, CPUs, memory, system."""
    return {
        "processor": _processor(),
        "cpus": available_cpus(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def peak_rss_bytes() -> int:
    """Return the largest resident memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
