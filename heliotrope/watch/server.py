"""The web server of the page: for this machine alone, and for whoever has the address.

It listens on 127.0.0.1. The address has a random token, so that other users of the machine cannot
guess it, and the host of a request must be a name of this machine's own, so that no web site can
have a browser ask by another name (DNS rebinding).
"""

from __future__ import annotations

import json
import secrets
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from heliotrope import __version__
from heliotrope.errors import ConfigError
from heliotrope.report.charts import AXES, COLOURS, MARKERS
from heliotrope.report.templates import filled, resource
from heliotrope.watch.live import LiveRuns

__all__ = ["WatchServer"]

_LOCAL = {"127.0.0.1", "localhost"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # it would tell the token
    "X-Content-Type-Options": "nosniff",
}


class WatchServer(ThreadingHTTPServer):
    """Serves the page of `runs` at `address`; `title` says what is watched. A port of 0 is free.

    Raises `ConfigError` naming `port` if it is taken or may not be used.
    """

    daemon_threads = True

    def __init__(self, runs: LiveRuns, title: str, port: int = 0) -> None:
        self.runs = runs
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"port={port} cannot be used: {error.strerror}. Name another one, or leave it out "
                "for one that is free."
            ) from error
        page = filled(
            "watch/watch.html.j2",
            title=title,
            version=__version__,
            axes=json.dumps(AXES),
            colours=COLOURS,
            markers=MARKERS,
        )
        style = resource("report/report.css") + resource("watch/watch.css")
        self.pages = {
            "": ("text/html", page.encode()),
            "style.css": ("text/css", style.encode()),
            "watch.js": ("text/javascript", resource("watch/watch.js").encode()),
        }

    @property
    def address(self) -> str:
        """What one opens in a browser."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what was raised for a request; a page that was closed meanwhile is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    server_version = "heliotrope"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        """Answer with a file of the page, or with what has changed."""
        if self.headers.get("Host", "").partition(":")[0] not in _LOCAL:
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"not a name of this host")
            return
        url = urlsplit(self.path)
        token, slash, name = url.path.removeprefix("/").partition("/")
        known = secrets.compare_digest(token.encode(), self.server.token.encode())
        if known and slash and name == "changes":
            after = parse_qs(url.query).get("after", ["0"])[0]
            changes = self.server.runs.changes(int(after) if after.isdecimal() else 0)
            content = json.dumps(changes, separators=(",", ":"), allow_nan=False).encode()
            self._answer(HTTPStatus.OK, "application/json", content)
        elif known and slash and name in self.server.pages:
            self._answer(HTTPStatus.OK, *self.server.pages[name])
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not found")

    def _answer(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing: the address of a request has the token in it."""
