"""CPU quotas of containers: time on the CPUs, in CPUs, that a control group may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["cpu_quota"]


def cpu_quota(process: Path = Path("/proc/self")) -> float | None:
    """Return the CPUs that the control groups of a process allow it, None if any number.

    Both versions of control groups are asked, and the groups above a process's own as well:
    the least holds. `process` is its folder below /proc (see cgroups(7)).
    """
    try:
        groups = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    quotas = [_quota(folder) for group in groups for folder in _folders(group, mounts)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _folders(group: str, mounts: list[str]) -> Iterator[Path]:
    """Yield the folders of the group of a line of /proc/PID/cgroup, from its own upwards."""
    _, controllers, path = group.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return
    for mount in mounts:
        mounted, _, kind = mount.partition(" - ")
        _, _, _, root, point, *_ = mounted.split()
        name, _, options, *_ = kind.split()
        version_1 = name == "cgroup" and "cpu" in options.split(",")
        if not (version_1 if controllers else name == "cgroup2"):
            continue
        try:
            below = PurePosixPath(path).relative_to(root)
        except ValueError:  # a container sees its own group as the root, under a name of the host
            below = PurePosixPath()
        own = Path(point.replace("\\040", " ")) / below
        yield own
        yield from list(own.parents)[: len(below.parts)]


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # no quota file in a root group; "max" in version 2
        return None
