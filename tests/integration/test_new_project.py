"""`heliotrope new DIR`: what it writes is small, trains in both modes, and passes its own test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from heliotrope import cli
from tests.support import Started, command, environment, type_command


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert cli.main(["new", str(tmp_path / "mine")]) == 0
    return tmp_path / "mine"


def test_it_is_small_and_is_composed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(len(file.read_text().splitlines()) for file in project.iterdir()) < 120
    monkeypatch.chdir(project.parent)
    job = Started()
    assert type_command(monkeypatch, "federated", "experiment=mine/experiment.yaml", job=job) == 0
    assert (job.runs[0].model.name, job.runs[0].data.name) == ("tiny", "rings")


@pytest.mark.slow
def test_its_own_test_passes(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(project)],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    listed = command("heliotrope", "list", "plugins=[plugin.py]", "model=tiny", cwd=project)
    assert "model.width" in listed.stdout


@pytest.mark.parametrize("words", [[], ["--force"], ["a", "b"], ["mine"]])
def test_what_it_refuses(
    words: list[str],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(project.parent)
    before = {file: file.read_bytes() for file in project.iterdir()}
    assert cli.main(["new", *words]) == 2
    said = "mine is not empty" if words == ["mine"] else "new takes one folder"
    assert said in capsys.readouterr().err
    assert {file: file.read_bytes() for file in project.iterdir()} == before
