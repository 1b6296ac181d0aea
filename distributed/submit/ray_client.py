"""A Ray cluster's job API: errors that say what to do, logs that are followed to the end."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from heliotrope.cluster.address import AUTHENTICATION, token
from heliotrope.errors import ResourceError, RunFailedError

from .base import Job, show
from .package import Package

__all__ = ["Client", "RayJob"]

_SECONDS = 5.0  # that the cluster may take to connect, and to answer
_TRANSFER_SECONDS = 600.0  # that it may take for the working directory, and to take the job
_LOST_SECONDS = 60.0  # that a cluster may be away while a job of it is followed
_STARTED_SECONDS = 60.0  # from when a cluster's dashboard answers until it takes jobs
_POLL_SECONDS = 0.2
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Client:
    """The job API at an address.

    A job is sent by the requests that Ray documents. Ray's own client, whose import takes longer
    than they do, follows the job once it is on its way.

    Raises `ResourceError` if nothing answers there in 10 s, if it is no Ray dashboard, or if it
    does not take our token.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        disabled = os.environ.get("RAY_AUTH_MODE", "token").lower() != "token"
        found = None if disabled else token()
        self._headers = {"Authorization": f"Bearer {found}"} if found else {}
        self._refuse_unusable(disabled)

    @cached_property
    def _client(self) -> Any:
        # Ray's client prefers this to the address that it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        sdk: Any = import_module("ray.job_submission")
        for module in ("dashboard_sdk", "job.sdk"):  # each says what it does
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)
        return sdk.JobSubmissionClient(self.address, headers=self._headers)

    def _request(
        self, method: str, path: str, timeout: float = _TRANSFER_SECONDS, **more: Any
    ) -> Any:
        import requests  # here: it takes a while

        url = f"{self.address}/api/{path}"
        return requests.request(method, url, headers=self._headers, timeout=timeout, **more)

    def _refuse_unusable(self, disabled: bool) -> None:
        import requests

        where = f"cluster.address={self.address}"
        try:
            answer = self._request("GET", "version", timeout=_SECONDS)
        except requests.exceptions.RequestException as error:
            raise ResourceError(
                f"{where} does not answer ({_reason(error)}). Start that cluster with its "
                "dashboard, or set cluster.address to the one that `ray start --head` printed."
            ) from error
        if answer.status_code in (401, 403):
            mode = f" (RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']})" if disabled else ""
            problem = "refuses the token that was found" if self._headers else "asks for a token"
            raise ResourceError(f"{where}: the Ray cluster {problem}{mode}. {AUTHENTICATION}")
        if not answer.ok or "ray_version" not in answer.text:
            raise ResourceError(
                f"{where} is not the dashboard of a Ray cluster: it answers with status "
                f"{answer.status_code}. Its port is mostly 8265, that of Ray itself 6379."
            )

    def submit(self, request: Mapping[str, Any], package: Package) -> str:
        """Send a job with the files of its working directory; return its id.

        A cluster that has just been started takes none yet, and is asked again. Raises
        `ResourceError` saying why the cluster does not take it.
        """
        deadline = time.monotonic() + _STARTED_SECONDS
        try:
            where = {"working_dir": f"gcs://{self._sent(package)}"}
            body = {**request, "runtime_env": {**request["runtime_env"], **where}}
            while True:
                answer = self._request("POST", "jobs/", json=body)
                if answer.ok:
                    return str(answer.json()["submission_id"])
                early = "No available agent" in answer.text
                if not early or time.monotonic() > deadline:
                    raise OSError(answer.text.strip().rpartition("\n")[2])
                time.sleep(1.0)
        except OSError as error:  # those of requests are
            raise ResourceError(
                f"cluster.address={self.address} does not take the job: {_reason(error)}."
            ) from error

    def _sent(self, package: Package) -> str:
        """Send the files, unless the cluster has them; return its name for them."""
        name = package.name
        if not self._request("GET", f"packages/gcs/{name}").ok:
            with tempfile.TemporaryDirectory() as folder:
                archive = Path(folder) / name
                package.write(archive)
                answer = self._request("PUT", f"packages/gcs/{name}", data=archive.read_bytes())
            if not answer.ok:
                raise OSError(answer.text.strip().rpartition("\n")[2])
        return name

    def details(self, job: str) -> Any:
        """Return what the cluster knows about a job: `status`, `message`, `driver_exit_code`."""
        return self._client.get_job_info(job)

    def stop(self, job: str) -> None:
        """Ask the cluster to end a job by SIGTERM."""
        self._client.stop_job(job)

    def log(self, job: str) -> AsyncIterator[str]:
        """Yield what a job has printed, and what it prints, until its end."""
        found: AsyncIterator[str] = self._client.tail_job_logs(job)
        return found


class RayJob(Job):
    """A job of a Ray cluster."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._printed = 0

    @property
    def name(self) -> str:
        return f"job {self._name}"

    def follow(self) -> int:
        details = self._ended()
        if details.status == "STOPPED":
            raise RunFailedError(f"{self.name} was stopped on the cluster.")
        code = getattr(details, "driver_exit_code", None)
        if details.status == "FAILED" and code in (None, 0):
            raise RunFailedError(f"{self.name} failed: {' '.join(str(details.message).split())}")
        return int(code or 0)

    def stop(self) -> None:
        self._client.stop(self._name)
        self._ended()

    def _ended(self) -> Any:
        """Print what the job prints until it has ended; return the cluster's last word on it."""
        answered = time.monotonic()
        while True:
            try:
                asyncio.run(self._print())
                details = self._client.details(self._name)
                answered = time.monotonic()
            except (RuntimeError, OSError) as error:
                if time.monotonic() - answered > _LOST_SECONDS:
                    raise RunFailedError(
                        f"{self._client.address} has not answered for {_LOST_SECONDS:g} s "
                        f"({_reason(error)}); {self.name} may be running. Send the same words "
                        "again to continue the run once it has ended."
                    ) from error
            else:
                if details.status in _ENDED:
                    return details
            time.sleep(_POLL_SECONDS)

    async def _print(self) -> None:
        """Print the log from where it was left, until it ends or the connection breaks."""
        seen = 0
        try:
            async for text in self._client.log(self._name):
                start = max(0, self._printed - seen)  # the log comes from its beginning again
                seen += len(text)
                if start < len(text):
                    self._printed = seen
                    show(text[start:])
        except (RuntimeError, OSError, import_module("aiohttp").ClientError):
            pass  # whoever calls looks at the job, and comes back


def _reason(error: BaseException) -> str:
    """Return the innermost cause in one line: libraries wrap it in several of their own."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return " ".join(str(error).split())[:500]
