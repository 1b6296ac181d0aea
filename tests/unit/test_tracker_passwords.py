"""No password of a tracker's address stands in a file, a message or a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from heliotrope.config.checks import shared
from heliotrope.errors import ConfigError
from heliotrope.runs.directory import RunDirectory
from heliotrope.system.redaction import masked
from tests.support import Started, compose, type_command
from tests.tracked_runs import SECRET, FakeMlFlow, tracker_of, train


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:pa55@server:5000/x", "http://me:***@server:5000/x"),
        ("http://me:p@a:55@server", "http://me:***@server"),
        ("postgresql+psycopg2://u:pa55@h/db", "postgresql+psycopg2://u:***@h/db"),
        ("postgresql://h/db?user=u&password=pa55&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://server:5000", "http://server:5000"),
        ("http://server/a:b@c", "http://server/a:b@c"),
        ("http://server:5000/a@b", "http://server:5000/a@b"),
        ("http://server/a?at=x:y@z", "http://server/a?at=x:y@z"),
        ("http://u:pa/55@server/x", "http://u:***@server/x"),
        ("postgresql://u:pa/55@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:55/pa@h/db", "postgresql://u:***@h/db"),
        ("mysql+pymysql://h:3306/db", "mysql+pymysql://h:3306/db"),
        ("https://pa55@server/x.mlflow", "https://***@server/x.mlflow"),
        ("postgresql://me@h/db", "postgresql://me@h/db"),
        ("https://server/x?access_token=pa55&y=1", "https://server/x?access_token=***&y=1"),
        ("https://server/x?sv=1&sig=pa55", "https://server/x?sv=1&sig=***"),
        ("https://server/x?api_key=pa55", "https://server/x?api_key=***"),
        (
            "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dpa%2F55%3BUID%3Du",
            "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3D***%3BUID%3Du",
        ),
    ],
)
def test_a_password_in_an_address_is_masked(address: str, shown: str) -> None:
    assert masked(f"before {address} after") == f"before {shown} after"


def test_the_password_stands_in_no_file_and_reaches_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeMlFlow(monkeypatch)
    run = compose("distributed", f"tracking.mlflow={SECRET}")
    home = RunDirectory(tmp_path)
    home.claim(run, "distributed")
    home.begin(run)
    with tracker_of(run, tmp_path) as tracker:
        train(tracker, [1], [3.0])
    home.release()
    saved = yaml.safe_load(home.config.read_text())
    assert saved["tracking"]["mlflow"] == "http://me:***@server:5000"
    assert server.params["tracking.mlflow"] == "http://me:***@server:5000"
    assert set(server.asked) == {SECRET}
    for path in tmp_path.iterdir():
        assert "pa55" not in path.read_text()
    run.resume = True
    home.claim(run, "distributed")  # with the password again, it is the same run
    home.release()


@pytest.mark.parametrize(
    "copied", ["http://me:***@server:5000", "'postgresql://h/db?user=u&password=***'"]
)
def test_an_address_copied_from_a_run_is_refused(
    copied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"tracking\.mlflow.*with the password"):
        compose("distributed", f"tracking.mlflow={copied}")


def test_a_sweep_shows_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shared, "find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)

    def fail(*_arguments: object) -> None:
        raise ValueError(f"no answer from {SECRET}")

    job = Started(fail)
    typed = ("-m", "seed=1,2", f"tracking.mlflow={SECRET}", "hydra.sweep.dir=sweep")
    assert type_command(monkeypatch, "federated", *typed, job=job) == 1
    assert [run.tracking.mlflow for run in job.runs] == [SECRET, SECRET]
    shown = "".join(capsys.readouterr())
    assert "[1] seed=2 tracking.mlflow=" in shown
    assert shown.count(":***@server") == 4, shown
    assert "ValueError: no answer from http://me:***@server:5000" in shown
    assert "pa55" not in shown
    assert "pa55" not in (tmp_path / "sweep" / "multirun.yaml").read_text()
