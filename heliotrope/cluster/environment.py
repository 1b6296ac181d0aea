"""What workers on a running cluster have of the driver's environment, which they do not inherit.

Settings go by Ray's runtime environment: a process has them from its start, and Ray writes them
into its logs. Credentials therefore go as an argument of the actor, which is logged nowhere.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliotrope.config import ClusterConfig

__all__ = ["DriverEnvironment", "driver_environment"]

_log = logging.getLogger(__name__)

_SECRET_NAME = re.compile(r"TOKEN|PASS|SECRET|CREDENTIAL|KEY|AUTH", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/\s]*@")  # the user of a URL, mostly with a password
_OF_RAY = re.compile(r"RAY_|.*_VISIBLE_DEVICES$")  # what Ray gives each worker itself


@dataclass(frozen=True)
class DriverEnvironment:
    """Variables and working directory of the driver; empty where workers inherit them."""

    settings: Mapping[str, str] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    directory: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Return the options of a Ray actor by which it has the settings."""
        return {"runtime_env": {"env_vars": dict(self.settings)}} if self.settings else {}

    def enter(self) -> None:
        """Take on the rest, in a worker that has imported nothing yet that looks for it."""
        os.environ.update(self.credentials)
        if self.directory is None:
            return
        try:
            os.chdir(self.directory)
        except OSError as error:  # of a machine that shares only the run's directory
            _log.warning("the driver's working directory is not there: %s", error)


def driver_environment(cfg: ClusterConfig, *, inherited: bool) -> DriverEnvironment:
    """Return what `cfg` lets workers have of this process; nothing if it is `inherited`.

    A variable that `cluster.environment` names counts as a credential if its name or value looks
    like one.
    """
    if inherited:
        return DriverEnvironment()
    settings, credentials = {}, {}
    for name, value in os.environ.items():
        secret = _matches(name, cfg.credentials)
        if _OF_RAY.match(name) or not (secret or _matches(name, cfg.environment)):
            continue
        if secret or _SECRET_NAME.search(name) or _SECRET_VALUE.search(value):
            credentials[name] = value
        else:
            settings[name] = value
    return DriverEnvironment(settings, credentials, str(Path.cwd()))


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
