"""`heliotrope list`: names with a line each, keys with their types, defaults and meanings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from heliotrope import cli
from tests.support import ROOT

_MINE = '''
from heliotrope import plugin

@plugin.model
def listed(task, *, width: int = 32, name_of: str | None = None, must: float):
    """A model of mine.

    Parameters
    ----------
    width
        Of its layer.
    """
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(_MINE)
    return "plugins=[mine.py]"


def test_all_names_and_those_of_plugins(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", mine]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    by_group = {block.split()[0]: block.splitlines() for block in blocks}
    assert {"model", "data", "partition", "strategy", "optimizer", "schedule"} <= by_group.keys()
    assert any(line.split()[:2] == ["heart", "920"] for line in by_group["data"])
    (listed,) = (line for line in by_group["model"] if line.split()[0] == "listed")
    assert "A model of mine." in listed
    assert f"mine.py, line {_MINE.splitlines().index('@plugin.model') + 1}" in listed


def test_the_keys_of_a_choice(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", mine, "model=listed", "optimizer=adamw", "strategy=krum"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["model.width"].split(maxsplit=3)[1:] == ["int", "32", "Of its layer."]
    assert rows["model.name_of"].split() == ["model.name_of", "str", "|", "None", "null"]
    assert "(to be set)" in rows["model.must"]
    assert rows["optimizer.weight_decay"].split()[1:3] == ["float", "0.01"]  # its own, not common
    assert "federated.strategy.num_malicious_nodes" in rows


def test_a_default_is_that_of_the_file_in_conf(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "data=digits"]) == 0
    (row,) = (r for r in capsys.readouterr().out.splitlines() if "data.validation_fraction" in r)
    assert row.split()[1:3] == ["float", "0.1"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("modle=cnn", "Did you mean 'model'?"),
        ("model=cnnn", "Did you mean 'cnn'?"),
        ("metrics=[accuracy]", "Type list metric=accuracy."),
        ("distributed.lr_schedule=cosine", "Type list schedule=cosine."),
        ("model=", "not 'model='"),
        ("plugins=[nothing.py]", "nothing.py cannot be read"),
    ],
)
def test_what_cannot_be_listed(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", word]) == 2
    assert said in capsys.readouterr().err


def test_it_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from heliotrope import cli; cli.main(['list']); "
        "cli.main(['list', 'model=gpt', 'strategy=krum']); "
        "print(sorted({'torch', 'flwr', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
