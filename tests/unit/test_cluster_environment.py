"""What of the driver's environment reaches the workers of a running cluster, and on which way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from heliotrope.cluster.environment import DriverEnvironment, driver_environment
from heliotrope.config import ClusterConfig
from heliotrope.config.tracking_uri import absolute_uri
from heliotrope.errors import ConfigError
from tests.support import ROOT, compose


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that holds nothing but what the test sets."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    return monkeypatch


def test_settings_and_credentials_go_two_ways(only: pytest.MonkeyPatch) -> None:
    settings = {
        "NCCL_SOCKET_IFNAME": "eth0",
        "MLFLOW_TRACKING_USERNAME": "ann",
        "https_proxy": "http://proxy:3128",
    }
    secrets = {
        "MLFLOW_TRACKING_TOKEN": "t",
        "MLFLOW_TRACKING_PASSWORD": "p",
        "MLFLOW_TRACKING_URI": "https://ann:p@host",
        "HTTP_PROXY": "http://ann:p@proxy:3128",
        "MINE": "named by the user",
    }
    others = {"HOME": "/root", "GITHUB_TOKEN": "not ours", "RAY_AUTH_TOKEN": "Ray's own"}
    for name, value in (settings | secrets | others).items():
        only.setenv(name, value)
    cfg = compose("distributed", "cluster.credentials=[MINE]").cluster
    found = driver_environment(cfg, inherited=False)
    assert found.settings == settings
    assert found.credentials == secrets
    assert found.directory == str(Path.cwd())
    assert found.options == {"runtime_env": {"env_vars": settings}}
    assert not any(secret in repr(found) for secret in ("ann:p", "named by the user"))


def test_what_ray_gives_each_worker_is_never_taken_from_the_driver(
    only: pytest.MonkeyPatch,
) -> None:
    only.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    only.setenv("RAY_JOB_ID", "1")
    found = driver_environment(ClusterConfig(environment=["CUDA_*", "RAY_*"]), inherited=False)
    assert (dict(found.settings), dict(found.credentials)) == ({}, {})
    assert found.options == {}


def test_workers_of_our_own_ray_inherit_all(only: pytest.MonkeyPatch) -> None:
    only.setenv("NCCL_DEBUG", "INFO")
    cfg = compose("distributed").cluster
    assert driver_environment(cfg, inherited=True) == DriverEnvironment()


def test_a_directory_that_is_not_there_is_no_failure(
    only: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only.chdir(tmp_path)
    only.setenv("A_TOKEN", "")
    DriverEnvironment({}, {"A_TOKEN": "t"}, str(tmp_path / "elsewhere")).enter()
    assert Path.cwd() == tmp_path
    assert os.environ["A_TOKEN"] == "t"  # noqa: S105 - the test's own


@pytest.mark.parametrize("module", ["distributed.launch.ray_worker", "federated.pools.ray_process"])
def test_a_worker_enters_it_before_torch_is_imported(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("sqlite:///mlflow.db", "sqlite:////here/mlflow.db"),
        ("sqlite:///sub/mlflow.db?timeout=5", "sqlite:////here/sub/mlflow.db?timeout=5"),
        ("sqlite+pysqlite:///mlflow.db", "sqlite+pysqlite:////here/mlflow.db"),
        ("file:mlruns", "file:///here/mlruns"),
        ("mlruns", "/here/mlruns"),
        *(
            (same, same)
            for same in (
                "sqlite:////there/mlflow.db",
                "sqlite:///:memory:",
                "sqlite://",
                "file:///there",
                "/there",
                "http://host:5000",
                "postgresql://host/db",
                "databricks",
                "databricks://profile",
            )
        ),
    ],
)
def test_a_relative_tracking_uri_is_of_where_the_command_was_typed(
    uri: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "absolute", lambda path: Path("/here") / path)
    assert absolute_uri(uri) == meant


def test_the_config_of_a_run_holds_the_absolute_uri() -> None:
    pytest.importorskip("mlflow")
    run = compose("federated", "tracking.mlflow=sqlite:///mlflow.db")
    assert run.tracking.mlflow == f"sqlite:///{Path.cwd() / 'mlflow.db'}"


@pytest.mark.parametrize("typed", ["true", "True", "''"])
def test_a_tracking_uri_that_is_none_is_refused(typed: str) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(ConfigError, match=r"no address.*sqlite"):
        compose("federated", f"tracking.mlflow={typed}")
