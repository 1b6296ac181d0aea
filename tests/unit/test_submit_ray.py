"""What `cluster=ray` would send: the working directory without data, plug-ins, paths that hold."""

from __future__ import annotations

import io
import json
import shlex
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from distributed.submit import ray_jobs
from distributed.submit.package import Package
from distributed.submit.ray_client import Client
from heliotrope.cli import main
from heliotrope.errors import ConfigError, ResourceError

_PLUGIN = """
from torch import nn
from heliotrope import plugin

@plugin.model
def NAME(task):
    return nn.Linear(3, task.num_outputs)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with code, data, and results; beside it, a plug-in and data of others."""
    here = tmp_path / "project"
    for name in ("data/big.bin", "runs/a/run.log", ".git/HEAD", ".venv/bin/python", "src/data/x.py",
                 "src/__pycache__/x.pyc", "notes.txt", "ignored.txt"):  # fmt: skip
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    (here / ".gitignore").write_text("ignored.txt\n")
    (here / "mine.py").write_text(_PLUGIN.replace("NAME", f"m{tmp_path.name}".replace("-", "_")))
    (tmp_path / "theirs.py").write_text(
        _PLUGIN.replace("NAME", f"t{tmp_path.name}".replace("-", "_"))
    )
    for place in (here, tmp_path):
        (place / "rows.csv").write_text("a,b,label\n" + "1,2,x\n3,4,y\n" * 20)
    monkeypatch.chdir(here)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    return here


def _plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["submit", "cluster=ray", "dry_run=true", *words]) == 0
    plan = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(plan, dict)
    return plan


def _names(plan: dict[str, object]) -> set[str]:
    listed = plan["working_dir"]
    assert isinstance(listed, list)
    return {line.rpartition("  ")[0] for line in listed}


def test_the_working_directory_is_sent_without_data_and_results(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = _plan(capsys, "cluster.address=head:8265", "cluster.pip=[einops]", "cluster.gpus=0.5",
                 "--", "federated", "experiment=quickstart", "hydra.run.dir=runs/b")  # fmt: skip
    assert _names(plan) == {"src/data/x.py", "notes.txt", ".gitignore", "mine.py", "rows.csv"}
    assert plan["address"] == "http://head:8265"
    assert plan["entrypoint"] == (
        "exec python -m heliotrope federated experiment=quickstart "
        f"hydra.run.dir={project / 'runs/b'} resume=true"
    )
    assert plan["entrypoint_num_gpus"] == 0.5
    assert plan["runtime_env"]["pip"] == ["einops"]  # type: ignore[index]
    everything = _names(_plan(capsys, "cluster.exclude=[]", "--", "list"))
    assert {"data/big.bin", "runs/a/run.log"} <= everything


def test_code_from_elsewhere_is_sent_and_data_from_elsewhere_is_named(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--", "distributed", "plugins=[mine.py,../theirs.py]", "data=table", "data.target=label")
    plan = _plan(capsys, *run, "data.path=../rows.csv")
    words = str(plan["entrypoint"]).split()
    assert f"data.path={project.parent / 'rows.csv'}" in words
    (plugins,) = [word for word in words if "plugins=" in word]
    inside, outside = plugins.strip("'").removeprefix("plugins=[").rstrip("]").split(",")
    assert inside == "mine.py"
    assert {inside, outside} <= _names(plan)
    assert outside.endswith("/theirs.py")
    within = _plan(capsys, *run, f"data.path={project / 'rows.csv'}")
    assert "data.path=rows.csv" in str(within["entrypoint"]).split()


def test_a_link_to_a_folder_above_is_not_followed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _names(_plan(capsys, "--", "list"))
    for name in ("here", "again", "src/above"):
        (project / name).symlink_to(project if name != "src/above" else project.parent)
    (project / "src/a").symlink_to(project / "src/a")
    (project / "notes").symlink_to(project / "src")  # one that leads elsewhere is
    assert _names(_plan(capsys, "--", "list")) == {*before, "notes/data/x.py"}


def _words(capsys: pytest.CaptureFixture[str], *command: str) -> list[str]:
    """Return the words of the command that would be sent."""
    return shlex.split(str(_plan(capsys, "--", *command)["entrypoint"]))


def test_paths_of_a_sweep_hold_for_its_jobs(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = project.parent / "theirs.yaml"
    theirs.write_text(
        "# @package _global_\ndefaults:\n  - override /data: table\n"
        "data: {path: rows.csv, target: label}\n"
    )
    sweep = ("federated", "-m", "seed=1,2", "privacy.ledger=runs/spent.jsonl")
    words = _words(capsys, *sweep, "experiment=../theirs.yaml")
    assert f"data.path={project.parent / 'rows.csv'}" in words
    assert f"privacy.ledger={project / 'runs/spent.jsonl'}" in words
    # Those that it goes over, too.
    big = project / "data/big.bin"
    words = _words(capsys, *sweep, "data=table", "data.path=rows.csv,data/big.bin")
    assert f"data.path=rows.csv,{big}" in words
    words = _words(capsys, *sweep, "experiment=quickstart,../theirs.yaml")
    (experiments,) = [word for word in words if word.startswith("experiment=")]
    assert experiments.startswith("experiment=quickstart,submitted/")


def test_paths_of_commands_that_train_nothing_hold_for_the_job(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, big = project / "runs/a", project / "data/big.bin"
    assert _words(capsys, "compare", "runs/a", "src")[4:] == ["compare", str(run), "src"]
    assert _words(capsys, "runs", "diff", "runs/a", "src")[5:] == ["diff", str(run), "src"]
    ledger = f"ledger={project / 'runs/spent.jsonl'}"
    assert _words(capsys, "privacy", "ledger=runs/spent.jsonl")[5:] == [ledger]
    told = _words(capsys, "stats", "data=table", "data.path=data/big.bin", "data.test=rows.csv")
    assert told[5:] == ["data=table", f"data.path={big}", "data.test=rows.csv"]


def test_a_pattern_keeps_its_name_if_all_its_files_are_sent(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("src", "data"):
        (project / folder / "1.parquet").touch()
    run = ("federated", "data=table", "data.target=label")
    assert "data.path=src/*.parquet" in _words(capsys, *run, "data.path=src/*.parquet")
    outside = f"data.path={project}/*/*.parquet"  # one of its files is not sent
    assert outside in _words(capsys, *run, "data.path=*/*.parquet")


def test_with_a_storage_the_job_mirrors_the_directory_and_names_none_here(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--", "federated", "experiment=quickstart", "hydra.run.dir=runs/b")
    plan = _plan(capsys, "storage=s3://bucket/all/", *run)
    assert plan["entrypoint"] == (
        "exec python -m heliotrope mirror storage=s3://bucket/all/runs/b -- federated "
        "experiment=quickstart resume=true"
    )


def test_credentials_are_not_written_into_a_request(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "sesame")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    plan = _plan(capsys, "--", "federated", "experiment=quickstart")
    assert "sesame" not in yaml.safe_dump(plan)
    assert plan["runtime_env"]["env_vars"]["NCCL_DEBUG"] == "INFO"  # type: ignore[index]


def test_the_largest_files_of_too_much_are_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "weights.bin").write_bytes(bytes(3000))
    monkeypatch.setattr(ray_jobs, "_limit", lambda: 2500)
    assert main(["submit", "cluster=ray", "dry_run=true", "--", "list"]) == ConfigError.exit_code
    said = capsys.readouterr().err
    assert "weights.bin (3 kB)" in said
    assert "cluster.exclude" in said
    assert main(["submit", "cluster=ray", "dry_run=true", "cluster.exclude=['*.bin']", "--",
                 "list"]) == 0  # fmt: skip


def test_an_archive_holds_the_files_and_repeats_byte_for_byte(
    project: Path, tmp_path: Path
) -> None:
    (project / "mine.py").chmod(0o755)
    written = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for path in written:
        Package.of(project, ["/data", "/runs"]).write(path)
        (project / "notes.txt").touch()
    assert written[0].read_bytes() == written[1].read_bytes()
    with zipfile.ZipFile(written[0]) as archive:
        assert archive.read("src/data/x.py") == b"src/data/x.py"
        assert archive.getinfo("mine.py").external_attr >> 16 & 0o777 == 0o755


@contextmanager
def _server(status: int, body: dict[str, str], wait: float = 0.0) -> Iterator[str]:
    """Serve one answer, whatever is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(wait)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None: ...

    with _serving(Handler) as address:
        yield address


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "token", "said"),
    [
        (401, None, "asks for a token"),
        (403, "sesame", "refuses the token that was found"),
        (200, None, "is not the dashboard of a Ray cluster"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_named(
    status: int, token: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", token or "")
    with _server(status, {}) as address, pytest.raises(ResourceError, match=said) as caught:
        Client(address)
    assert f"cluster.address={address}" in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_an_address_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed.submit.ray_client._SECONDS", 0.2)
    with _server(200, {}, wait=1.0) as address:
        for unanswered in (address, "http://127.0.0.1:9"):
            with pytest.raises(ResourceError, match="does not answer"):
                Client(unanswered)


class _JobApi(BaseHTTPRequestHandler):
    """Ray's requests for packages and jobs, as far as they concern a submission."""

    kept: ClassVar[dict[str, bytes]] = {}
    jobs: ClassVar[list[dict[str, Any]]] = []
    refused: ClassVar[list[str]] = []  # what is said to the next submissions

    def do_GET(self) -> None:
        known = self.path == "/api/version" or self.path in self.kept
        self._answer(200 if known else 404, {"ray_version": "2"})

    def do_PUT(self) -> None:
        self.kept[self.path] = self._body()
        self._answer(200, {})

    def do_POST(self) -> None:
        if self.refused:
            self._answer(500, self.refused.pop())
            return
        self.jobs.append(json.loads(self._body()))
        self._answer(200, {"submission_id": f"job{len(self.jobs)}"})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None: ...


def test_the_same_files_are_sent_once_and_a_cluster_that_starts_is_asked_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.submit.ray_client.time.sleep", lambda _seconds: None)
    for name in ("kept", "jobs", "refused"):
        getattr(_JobApi, name).clear()
    request = {"entrypoint": "true", "runtime_env": {"env_vars": {"A": "b"}}}
    with _serving(_JobApi) as address:
        client = Client(address)
        names = []
        for _ in range(2):
            _JobApi.refused.append("No available agent to submit job, please try again later.")
            names.append(client.submit(request, Package.of(project, ["/data", "/runs"])))
            (project / "notes.txt").touch()
        (project / "mine.py").chmod(0o755)
        names.append(client.submit(request, Package.of(project, ["/data", "/runs"])))
        _JobApi.refused.append("ValueError: no such resource")
        with pytest.raises(ResourceError, match=r"job: .*no such resource"):
            client.submit(request, Package.of(project, ["/data", "/runs"]))
    assert names == ["job1", "job2", "job3"]
    used = [job["runtime_env"]["working_dir"] for job in _JobApi.jobs]
    assert used[0] == used[1] != used[2], "a mode is a change"
    assert _JobApi.jobs[0]["runtime_env"]["env_vars"] == {"A": "b"}
    packages = [f"/api/packages/{each.replace('://', '/')}" for each in (used[0], used[2])]
    assert [*_JobApi.kept] == packages
    with zipfile.ZipFile(io.BytesIO(_JobApi.kept[packages[0]])) as archive:
        assert archive.read("notes.txt") == b"notes.txt"


@pytest.mark.parametrize("address", ["ray://head:10001", "http://", "head:", "head:port"])
def test_what_is_no_address_of_a_dashboard_is_refused(
    address: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["submit", "cluster=ray", f"cluster.address='{address}'", "dry_run=true", "--", "list"]
    assert main(words) == ConfigError.exit_code
    assert f"cluster.address={address}" in capsys.readouterr().err


def test_without_the_extra_it_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_jobs, "find_spec", lambda _name: None)
    assert main(["submit", "cluster=ray", "--", "list"]) == ConfigError.exit_code
    assert "heliotrope[cluster]" in capsys.readouterr().err
