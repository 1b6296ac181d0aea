"""Which Ray cluster is running, and whether it takes us: found out before Ray tries for long.

`ray.init` repeats for 20 to 30 seconds what cannot succeed, and fills the terminal with warnings.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from heliotrope.errors import ResourceError

__all__ = ["AUTHENTICATION", "accepted_by", "running_cluster", "token"]

_MODE = "RAY_AUTH_MODE"
_SECONDS = 5.0  # that a cluster may take to answer


def running_cluster(ray: ModuleType) -> str | None:
    """Return host:port of the cluster that `ray.init()` will connect to; None to start one here.

    Raises `ResourceError` naming `RAY_ADDRESS` if that can be no such address, or says that a
    cluster runs here and none does.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if "://" in named:
        raise ResourceError(
            f"RAY_ADDRESS={named} is not supported: a run is a driver of the cluster itself. Set "
            "RAY_ADDRESS to the HOST:PORT that `ray start` printed, from a machine of the cluster, "
            "or hand the command to it: heliotrope submit cluster=ray -- COMMAND."
        )
    try:
        found = import_module(f"{ray.__name__}._private.services").canonicalize_bootstrap_address(
            None
        )
    except ConnectionError as error:
        raise ResourceError(
            f"RAY_ADDRESS={named}, but no Ray cluster runs on this machine. Start one with "
            "`ray start --head`, or unset RAY_ADDRESS."
        ) from error
    except (OSError, ValueError) as error:
        raise _does_not_answer(named, error) from error
    return None if found is None else str(found)


@contextmanager
def accepted_by(ray: ModuleType, address: str) -> Iterator[None]:
    """Authenticate inside the block as the cluster does, unless the user has chosen a mode.

    A cluster started with `ray start` where there is a token asks for it. One that does not is
    no place for a driver that does: it would refuse the cluster's own calls, and its actors die.

    Raises `ResourceError` where nothing listens, or where our token is not taken.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _does_not_answer(os.environ.get("RAY_ADDRESS") or address, error) from error
    chosen = os.environ.get(_MODE, "").lower()
    asked, found = _refuses(address, None), token()
    if asked is False and chosen == "token":
        raise ResourceError(
            f"{_MODE}=token, but the Ray cluster at {address} was started without authentication. "
            f"Unset {_MODE}."
        )
    if asked and (found is None or chosen not in ("", "token")):
        mode = f" ({_MODE}={chosen})" if chosen else ""
        raise ResourceError(
            f"The Ray cluster at {address} refuses a driver without a token{mode}. {AUTHENTICATION}"
        )
    if asked and _refuses(address, found):
        raise ResourceError(
            f"The Ray cluster at {address} refuses the token that was found. {AUTHENTICATION}"
        )
    if asked is None or chosen:
        yield
    elif asked:
        os.environ[_MODE] = "token"  # it stays, as when Ray sets it
        import_module(f"{ray.__name__}._raylet").Config.initialize("")  # Ray has read it before
        yield
    else:
        os.environ[_MODE] = "disabled"  # else Ray takes a token that is there for one to be used
        try:
            yield
        finally:
            del os.environ[_MODE]


AUTHENTICATION = (
    "Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or write ~/.ray/auth_token: it must be the token "
    "of the machine where the cluster was started."
)
"""What to do about a token that is missing or wrong."""


def _does_not_answer(address: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"RAY_ADDRESS={address} does not answer ({error}). Start that cluster, or unset "
        "RAY_ADDRESS to run on this machine alone."
    )


def token() -> str | None:
    """Return the token that Ray would use, looked for where Ray looks."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        path = Path(named) if named else Path.home() / ".ray" / "auth_token"
        return path.read_text().strip() or None
    except (OSError, RuntimeError, UnicodeDecodeError):  # none there, or nobody's home
        return None


def _refuses(address: str, token: str | None) -> bool | None:
    """Ask the cluster for its id; return whether it says that we may not, None if neither."""
    if os.environ.get("RAY_USE_TLS", "0") == "1":  # only Ray has the certificates
        return None
    import grpc  # type: ignore[import-untyped]  # here: only a running cluster needs it

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", metadata=metadata, timeout=_SECONDS)
        except grpc.RpcError as error:
            return True if error.code() == grpc.StatusCode.UNAUTHENTICATED else None
    return False
