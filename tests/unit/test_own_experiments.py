"""`experiment=path/to/mine.yaml`: an experiment of a user's own, and the plug-ins that it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from heliotrope.config import Run
from tests.support import Started, type_command

Type = Callable[..., Run | None]

_HEAD = "# @package _global_\ndefaults:\n  - override /data: digits\n"
_MODEL = "from torch import nn\nfrom heliotrope import plugin\n\n@plugin.model\n"
_MODEL += "def of_an_experiment(task, *, width: int = 3) -> nn.Module: ...\n"


@pytest.fixture
def type_(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Type:
    """Type a federated command in an empty folder; return its run, or None if it was refused."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def typed(*arguments: str) -> Run | None:
        job = Started()
        code = type_command(monkeypatch, "federated", *arguments, job=job)
        assert code == (0 if job.runs else 2)
        return job.runs[0] if job.runs else None

    return typed


@pytest.mark.parametrize("name", ["sub/mine.yaml", "../mine.yaml", "{}/mine.yaml", "mine.yaml"])
def test_an_experiment_is_named_by_its_path(name: str, type_: Type, tmp_path: Path) -> None:
    path = Path(name.format(tmp_path / "absolute"))
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{_HEAD}name: mine\nfederated: {{rounds: 3}}\n")
    run = type_(f"experiment={path}", "seed=5")
    assert run is not None
    assert (run.name, run.federated.rounds, run.seed) == ("mine", 3, 5)


def test_it_may_extend_another(type_: Type) -> None:
    Path("mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - quickstart\nname: mine\nfederated: {rounds: 3}\n"
    )
    run = type_("experiment=mine.yaml")
    assert run is not None
    assert (run.name, run.federated.rounds, run.seed) == ("mine", 3, 7)


def test_its_plugins_lie_beside_it(type_: Type) -> None:
    Path("sub").mkdir()
    Path("sub/net.py").write_text(_MODEL)
    Path("sub/mine.yaml").write_text(
        f"{_HEAD}  - override /model: of_an_experiment\nplugins: [net.py]\n"
    )
    run = type_("experiment=sub/mine.yaml", "model.width=4")
    assert run is not None
    assert (run.model.name, run.model.width) == ("of_an_experiment", 4)  # type: ignore[attr-defined]
    (recorded,) = run.plugins
    assert recorded["path"] == str(Path("sub/net.py").resolve())


def test_its_data_lies_beside_it_and_that_of_the_command_where_it_is_typed(type_: Type) -> None:
    Path("sub").mkdir()
    Path("sub/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: table\n"
        "data: {path: rows.csv, test: ../more.csv, target: sick}\n"
    )
    for file in ("sub/rows.csv", "more.csv", "rows.csv"):
        Path(file).touch()
    run = type_("experiment=sub/mine.yaml")
    assert run is not None
    assert run.data.path == str(Path("sub/rows.csv").resolve())  # type: ignore[attr-defined]
    assert run.data.test == str(Path("more.csv").resolve())  # type: ignore[attr-defined]
    run = type_("experiment=sub/mine.yaml", "data.path=rows.csv", "data.test=null")
    assert run is not None
    assert run.data.path == str(Path("rows.csv").resolve())  # type: ignore[attr-defined]
    assert run.data.test is None  # type: ignore[attr-defined]


_WRONG = {
    "nothing.yaml": (None, "experiment=nothing.yaml: there is no such file", "working directory"),
    "key.yaml": (f"{_HEAD}federated:\n  roundz: 3\n", "key.yaml, line 5", "federated.rounds"),
    "value.yaml": (f"{_HEAD}federated:\n  rounds: x\n", "value.yaml, line 5", "whole number"),
    "yaml.yaml": (f"{_HEAD}federated: {{rounds: 3\n", "yaml.yaml, line 5, column 1"),
    "header.yaml": ("name: mine\n", "header.yaml, line 1", "# @package _global_"),
    "choice.yaml": (f"{_HEAD}  - override /model: cnnn\n", "choice.yaml: model=cnnn", "'cnn'"),
    "plugins.yaml": (f"{_HEAD}plugins: net.py\n", "plugins.yaml, line 4", "plugins: [mine.py]"),
    "plugin.yaml": (f"{_HEAD}plugins: [no.py]\n", "plugin.yaml, line 4", "no.py cannot be read"),
}


@pytest.mark.parametrize("name", _WRONG)
def test_what_is_wrong_in_it_is_told_with_file_and_line(
    name: str, type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    text, *words = _WRONG[name]
    if text is not None:
        Path(name).write_text(text)
    assert type_(f"experiment={name}") is None
    said = capsys.readouterr().err
    for word in words:
        assert word is not None
        assert word in said, said
    assert "Traceback" not in said
