"""`cluster=ray`: a job of a running Ray cluster, by Ray's job API."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml  # type: ignore[import-untyped]

from heliotrope.cluster.environment import driver_environment
from heliotrope.errors import ConfigError

from .base import Cluster, Command, Job, Plan
from .package import Package
from .ray_client import Client, RayJob
from .relocation import relocated

__all__ = ["ray"]

_LOCAL = "http://127.0.0.1:8265"


def ray(
    *,
    address: str | None = None,
    exclude: Sequence[str] = ("/data", "/runs", "/outputs", "/multirun"),
    pip: Sequence[str] = (),
    cpus: float = 0.0,
    gpus: float = 0.0,
    python: str = "python",
    stop_seconds: int = 60,
) -> Cluster[RayPlan]:
    """Send a job to a running Ray cluster, with the working directory.

    Parameters
    ----------
    address
        Of the dashboard, such as http://head:8265; null: RAY_API_SERVER_ADDRESS, or this machine.
    exclude
        What of the working directory is not sent, as patterns of .gitignore; also what the files
        .gitignore and .rayignore name, .git and .venv.
    pip
        Packages that the job needs and the cluster does not have, such as [transformers==4.57.1].
    cpus, gpus
        That the job's own process holds, beside its workers: for runs that train in one process.
    python
        The command of Python on the cluster.
    stop_seconds
        How long a job that is stopped may take to save a checkpoint.
    """
    return _Ray(address, list(exclude), list(pip), cpus, gpus, python, stop_seconds)


@dataclass(frozen=True)
class RayPlan(Plan):
    """A request of Ray's job API, and the files that go with it."""

    address: str
    request: Mapping[str, Any]
    package: Package


@dataclass(frozen=True)
class _Ray(Cluster[RayPlan]):
    address: str | None
    exclude: list[str]
    pip: list[str]
    cpus: float
    gpus: float
    python: str
    stop_seconds: int

    def prepare(self, command: Command) -> RayPlan:
        package = Package.of(Path.cwd(), self.exclude)
        words = relocated(command, package)
        package.refuse_too_large(_limit())
        stop = {"RAY_JOB_STOP_WAIT_TIME_S": str(self.stop_seconds)}
        settings = driver_environment(command.cluster, inherited=False).settings
        environment: dict[str, Any] = {"env_vars": {**settings, **stop}}
        if self.pip:
            environment["pip"] = self.pip
        request: dict[str, Any] = {
            "entrypoint": f"exec {shlex.join([self.python, '-m', 'heliotrope', *words])}",
            "runtime_env": environment,
        }
        for key, value in (("cpus", self.cpus), ("gpus", self.gpus)):
            if value:
                request[f"entrypoint_num_{key}"] = value
        address = _address(self.address)
        shown = {"address": address, **request, "working_dir": package.listed()}
        text = yaml.safe_dump(shown, sort_keys=False, width=1000).rstrip()
        return RayPlan(text, address, request, package)

    def send(self, plan: RayPlan) -> Job:
        if find_spec("aiohttp") is None:
            raise ConfigError(
                "cluster=ray needs the packages of the extra cluster: pip install "
                "'heliotrope[cluster]'."
            )
        client = Client(plan.address)
        return RayJob(client, client.submit(plan.request, plan.package))


def _address(chosen: str | None) -> str:
    """Return the address of the dashboard; `ConfigError` if it cannot be one."""
    named = chosen or os.environ.get("RAY_API_SERVER_ADDRESS") or _LOCAL
    try:
        parts = urlsplit(named if "://" in named else f"http://{named}")
        usable = parts.scheme in ("http", "https") and bool(parts.hostname and parts.port != 0)
        usable = usable and not parts.netloc.endswith(":")
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise ConfigError(
            f"cluster.address={named} is not the address of a Ray dashboard. Set such as "
            "cluster.address=http://HOST:8265."
        )
    return parts.geturl().rstrip("/")


def _limit() -> int:
    """Return how many bytes Ray takes of a working directory."""
    packaging = import_module("ray._private.runtime_env.packaging")
    return int(packaging.GCS_STORAGE_MAX_SIZE)
