"""A RayJob on Kubernetes: its state, what it prints, and its exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

from heliotrope.errors import RunFailedError

from .base import Job

__all__ = ["KubeRayJob"]

_ASK_SECONDS = 2.0
_LOST_SECONDS = 120.0  # without an answer, after which the job counts as lost
_LAST_LINES_SECONDS = 10.0  # that what is printed may take to arrive
_REFUSED = "ValidationFailed"  # the operator starts nothing, and does not look again
_ENDED = ("Complete", "Failed", _REFUSED)
_PRINTING = ("Running", "Complete", "Failed")


class KubeRayJob(Job):
    """A job with its name and namespace."""

    def __init__(self, name: str, namespace: str) -> None:
        self._name = name
        self._namespace = namespace

    @property
    def name(self) -> str:
        return f"rayjob {self._namespace}/{self._name}"

    def follow(self) -> int:
        state, answered = "", time.monotonic()
        logs: subprocess.Popen[bytes] | None = None
        while True:
            status = self._status()
            if status is not None:
                answered = time.monotonic()
            elif time.monotonic() - answered > _LOST_SECONDS:
                raise RunFailedError(
                    f"kubectl has not known {self.name} for {_LOST_SECONDS:g} s. Look with "
                    f"kubectl get rayjob {self._name} --namespace {self._namespace}."
                )
            now = (status or {}).get("jobDeploymentStatus", state)
            if now != state:
                state = now
                sys.stderr.write(f"{self.name}: {state}\n")
            if state == "Retrying":  # with another Kubernetes Job of the same name
                logs = None
            elif state in _PRINTING and (logs is None or logs.poll()):
                logs = self._logs()
            if state in _ENDED:
                self._finish(logs)
                return self._code(status or {})
            time.sleep(_ASK_SECONDS)

    def stop(self) -> None:
        """Remove the job: its pods are told by SIGTERM."""
        subprocess.run(self._kubectl("delete", "rayjob", self._name, "--wait=false"), check=False)

    def _code(self, status: dict[str, Any]) -> int:
        """Return the command's exit code, which Ray tells in words."""
        if status.get("jobStatus") == "SUCCEEDED":
            return 0
        message = str(status.get("message") or status.get("reason") or "")
        sys.stderr.write(f"{self.name}: {message}\n")
        found = re.search(r"exit code (\d+)", message)
        return int(found[1]) if found and int(found[1]) else 1

    def _status(self) -> dict[str, Any] | None:
        answer = subprocess.run(
            self._kubectl("get", "rayjob", self._name, "--output=json"),
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode:
            return None
        status: dict[str, Any] = json.loads(answer.stdout).get("status", {})
        return status

    def _logs(self) -> subprocess.Popen[bytes]:
        """Print what the job's own Kubernetes Job prints, which streams the command's output."""
        return subprocess.Popen(self._kubectl("logs", "--follow", f"job/{self._name}"))

    def _finish(self, logs: subprocess.Popen[bytes] | None) -> None:
        if logs is None:
            return
        try:
            logs.wait(_LAST_LINES_SECONDS)
        except subprocess.TimeoutExpired:
            logs.terminate()
            logs.wait()

    def _kubectl(self, *words: str) -> list[str]:
        return ["kubectl", "--namespace", self._namespace, *words]
