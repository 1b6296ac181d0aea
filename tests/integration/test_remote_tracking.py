"""A tracking server that asks for a password is reached by every process of a run."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support import command

LOGIN = "Basic " + base64.b64encode(b"me:pa55").decode()


class _Server(ThreadingHTTPServer):
    """As much of MLflow's REST API as a run uses; `run` is what it was told."""

    def __init__(self) -> None:
        self.run: dict[str, Any] = {"params": [], "metrics": [], "statuses": []}
        self.refused = 0
        super().__init__(("localhost", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        self._answer(json.loads(self.rfile.read(length) or b"{}"))

    def _answer(self, asked: dict[str, Any]) -> None:
        if self.headers.get("Authorization") != LOGIN:
            self.server.refused += 1
            self._send(401, {"error_code": "PERMISSION_DENIED"})
            return
        told = self.server.run
        told["params"] += asked.get("params", [])
        told["metrics"] += asked.get("metrics", [])
        told["statuses"] += [asked["status"]] if "status" in asked else []
        info = {"run_id": "r", "experiment_id": "1", "status": "RUNNING", "artifact_uri": "x"}
        data = {"params": told["params"], "metrics": [], "tags": []}
        self._send(
            200,
            {
                "experiment": {"experiment_id": "1", "name": "quickstart"},
                "run": {"info": info, "data": data},
                "run_info": info,
            },
        )

    def _send(self, code: int, body: dict[str, Any]) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_arguments: object) -> None: ...


@contextmanager
def serving() -> Iterator[_Server]:
    with _Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    "launched",
    [
        ("distributed.launcher=inline", "distributed.workers=1"),
        pytest.param(
            ("distributed.launcher=torchrun", "distributed.workers=2"), marks=pytest.mark.slow
        ),
    ],
    ids=lambda launched: launched[0],
)
def test_the_password_reaches_the_workers_and_no_file(
    launched: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("mlflow")
    with serving() as server:
        done = command(
            "distributed",
            "experiment=quickstart",
            "distributed.epochs=2",
            "distributed.log_every_steps=1",
            f"tracking.mlflow=http://me:pa55@localhost:{server.server_port}",
            "hydra.run.dir=run",
            *launched,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr
    keys = [metric["key"] for metric in server.run["metrics"]]
    steps = (tmp_path / "run" / "metrics.jsonl").read_text().count('"event": "step"')
    assert steps > 60
    assert keys.count("step/loss") == steps
    assert keys.count("test/accuracy") == 2
    assert (server.run["statuses"][-1:], server.refused) == (["FINISHED"], 0)
    texts = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(b"pa55" in text for text in texts)
    assert "pa55" not in done.stdout + done.stderr + json.dumps(server.run)
