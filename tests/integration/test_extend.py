"""Every block of docs/extend.md runs as it stands, with the commands that follow it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import distributed.job
import federated.job
from heliotrope.config import Mode
from tests.support import ROOT, command, type_command

_PAGE = (ROOT / "docs/extend.md").read_text()
_FILES = {
    re.search(r"# (\S+)", block)[1]: block  # type: ignore[index]
    for block in re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)
}
_COMMANDS = re.findall(r"^python -m (.*)$", _PAGE, re.MULTILINE)
_SHORT = {
    "distributed": ("distributed.epochs=1", "distributed.workers=1", "distributed.launcher=inline"),
    "federated": ("federated.rounds=1", "federated.client_training=sequential"),
}
_JOBS = {"distributed": distributed.job.run_job, "federated": federated.job.run_job}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the files of the page, in which commands are typed."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    for name, block in _FILES.items():
        (tmp_path / name).write_text(block)
    return tmp_path


def test_blocks_are_short_and_every_file_is_used() -> None:
    assert all(len(block.splitlines()) <= 30 for block in _FILES.values())
    for name in _FILES:
        typed = [line for line in _COMMANDS if f"plugins=[{name}]" in line]
        modes = {line.split()[0] for line in typed}
        assert modes == ({"federated"} if "strategy" in name else {"distributed", "federated"})


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("line", _COMMANDS)
def test_a_block_trains_with_its_commands(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode: Mode
    mode, *words = shlex.split(line)  # type: ignore[assignment]
    where = f"hydra.run.dir={folder}/run"
    assert type_command(monkeypatch, mode, *words, *_SHORT[mode], where, job=_JOBS[mode]) == 0
    result = json.loads((folder / "run/result.json").read_text())
    assert result["status"] == "completed"
    if "metrics=[margin]" in words:
        assert "test/margin" in result["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("line", _COMMANDS)
def test_a_block_trains_on_ray_and_is_resumed(line: str, folder: Path) -> None:
    mode, *words = shlex.split(line)
    more = {
        "distributed": ("distributed.workers=2", "distributed.launcher=ray"),
        "federated": ("federated.pool=ray", "federated.workers=2"),
    }[mode]
    where = f"hydra.run.dir={folder}/run"
    done = command(mode, *words, *_SHORT[mode][:1], *more, where, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    further = {"distributed": "distributed.epochs=2", "federated": "federated.rounds=2"}[mode]
    horizon = ("distributed.lr_horizon=1",) if "late" in line else ()
    again = command(mode, *words, *more, where, further, *horizon, "resume=true", cwd=folder)
    assert again.returncode == 0, again.stdout + again.stderr
    measured = command("heliotrope", "evaluate", f"run={folder}/run", cwd=folder)
    assert measured.returncode == 0, measured.stderr
