"""A Ray of our own: it listens on this machine alone, and its token is nobody else's to read.

Whoever reaches Ray with its token runs code as its user (CVE-2023-48022 is about those without).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

__all__ = ["LOOPBACK", "keep_token_private", "listening_here_only", "without_dashboard"]

LOOPBACK = "127.0.0.1"
_RESOLVE = "resolve_ip_for_localhost"
_DASHBOARD = "get_dashboard_dependency_error"


@contextmanager
def listening_here_only(ray: ModuleType) -> Iterator[None]:
    """Let `ray.init(_node_ip_address=LOOPBACK)` mean that, inside the block.

    Ray puts the machine's outward address in its place, and then listens on all of them.
    """
    services = import_module(f"{ray.__name__}._private.services")
    real = getattr(services, _RESOLVE)
    setattr(services, _RESOLVE, lambda host: host)
    try:
        yield
    finally:
        setattr(services, _RESOLVE, real)


@contextmanager
def without_dashboard(ray: ModuleType) -> Iterator[None]:
    """Let `ray.init` start a node as it does without `ray[default]`, inside the block.

    With it, each node has an agent for the dashboard that nobody asks; it takes 1.6 s to start.
    """
    utils = import_module(f"{ray.__name__}._private.utils")
    real = getattr(utils, _DASHBOARD)
    setattr(utils, _DASHBOARD, lambda: ImportError("no dashboard is wanted"))
    try:
        yield
    finally:
        setattr(utils, _DASHBOARD, real)


def keep_token_private() -> None:
    """Make the token file that Ray is about to use, or read, one that only its user can read.

    Ray itself writes it as the umask says, mostly for all to read. Nothing is done where the user
    keeps the token elsewhere, or has chosen to have none.
    """
    chosen = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if chosen != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    with suppress(OSError, RuntimeError):  # no home, or one that is not ours: Ray says so
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write(path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _write(path: Path) -> None:
    """Write a new token, whole from the moment that it is there; another process may as well."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink()
