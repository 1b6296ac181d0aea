"""A Ray of our own: it listens on this machine alone, and its token is nobody else's to read.

Whoever reaches Ray with its token runs code as its user (CVE-2023-48022 is about those without).
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = [
    "LOOPBACK",
    "keep_token_private",
    "listening_here_only",
    "seen_at_once",
    "without_dashboard",
]

LOOPBACK = "127.0.0.1"
_RESOLVE = "resolve_ip_for_localhost"
_DASHBOARD = "get_dashboard_dependency_error"
_API_SERVER = "start_api_server"
_GET_NODE, _OPTIONS = "get_node", "_get_gcs_client_options"
_LOOK_EVERY, _LOOK_FOR = 0.02, 30.0  # seconds


@contextmanager
def listening_here_only(ray: ModuleType) -> Iterator[None]:
    """Let `ray.init(_node_ip_address=LOOPBACK)` mean that, inside the block.

    Ray puts the machine's outward address in its place, and then listens on all of them.
    """
    services = import_module(f"{ray.__name__}._private.services")
    with _replaced(services, _RESOLVE, lambda host: host, required=True):
        yield


@contextmanager
def without_dashboard(ray: ModuleType) -> Iterator[None]:
    """Let `ray.init` start a node without its dashboard's processes, inside the block.

    With `ray[default]`, each node has an agent for the dashboard, which takes 1.6 s to start. With
    `include_dashboard=False` there still is a server, for statistics alone: 0.9 s. Where a version
    of Ray lacks a function that is replaced, that part is started as usual.
    """
    utils = import_module(f"{ray.__name__}._private.utils")
    services = import_module(f"{ray.__name__}._private.services")
    with (
        _replaced(utils, _DASHBOARD, lambda: ImportError("no dashboard is wanted")),
        _replaced(services, _API_SERVER, lambda *_, **__: (None, None)),
    ):
        yield


@contextmanager
def seen_at_once(ray: ModuleType) -> Iterator[None]:
    """Let `ray.init` see that its node is up when it is, inside the block; Ray looks once a second.

    Ray's own call then finds it there, and does not wait. Where a version of Ray lacks a function
    that is used for it, Ray looks as usual.
    """
    services = import_module(f"{ray.__name__}._private.services")
    state = import_module(f"{ray.__name__}._private.state")
    if not all(hasattr(services, name) for name in (_GET_NODE, _OPTIONS)):
        yield
        return
    real, options_of = getattr(services, _GET_NODE), getattr(services, _OPTIONS)

    def get_node(gcs_address: str, node_id: str) -> Any:
        nodes, deadline = state.GlobalState(), time.monotonic() + _LOOK_FOR
        nodes._initialize_global_state(options_of(gcs_address))  # noqa: SLF001 - as Ray's own
        while time.monotonic() < deadline:
            if any(node["NodeID"] == node_id for node in nodes.node_table()):
                break
            time.sleep(_LOOK_EVERY)
        return real(gcs_address, node_id)

    with _replaced(services, _GET_NODE, get_node):
        yield


@contextmanager
def _replaced(
    module: ModuleType, name: str, function: Callable[..., Any], *, required: bool = False
) -> Iterator[None]:
    """Have `function` in place of a module's own inside the block, if it has one of this name.

    Raises `AttributeError` if it has none and it is `required`.
    """
    if not required and not hasattr(module, name):
        yield
        return
    real = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, real)


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
