"""`heliotrope submit`: what is typed becomes the words that are sent, or a named error."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from heliotrope import config, registry
from heliotrope.cli import main
from heliotrope.errors import ConfigError

CLUSTERS = registry.names("cluster")


def _printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Return what a dry run on this machine would run, after `python -m heliotrope`."""
    assert main(["submit", "dry_run=true", "--", *words]) == 0
    line = shlex.split(capsys.readouterr().out)
    assert line[:3] == [sys.executable, "-m", "heliotrope"]
    return line[3:]


@pytest.mark.parametrize("mode", ["distributed", "federated"])
def test_a_run_gets_a_directory_that_a_retry_continues(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = sys.argv
    words = _printed(capsys, mode, "experiment=quickstart", "seed=4")
    assert sys.argv is typed
    assert words[:3] == [mode, "experiment=quickstart", "seed=4"]
    assert words[3].startswith(f"hydra.run.dir={tmp_path}/runs/quickstart/{mode}/")
    assert words[4:] == ["resume=true"]
    assert not list(tmp_path.iterdir())
    assert _printed(capsys, *words) == words
    named = _printed(capsys, mode, "hydra.run.dir=mine", "resume=false")
    assert named == [mode, f"hydra.run.dir={tmp_path / 'mine'}", "resume=true"]


def test_a_sweep_gets_one_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = _printed(capsys, "federated", "-m", "experiment=quickstart", "seed=1,2")
    assert words[:4] == ["federated", "-m", "experiment=quickstart", "seed=1,2"]
    assert words[4].startswith(f"hydra.sweep.dir={tmp_path}/runs/quickstart/federated-sweep/")
    assert words[5:] == ["resume=true"]


def test_a_verb_that_trains_nothing_is_sent_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert _printed(capsys, "list", "model=cnn") == ["list", "model=cnn"]
    assert _printed(capsys, "federated", "--help") == ["federated", "--help"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["federated"], "needs -- before the command"),
        (["--"], "needs a command after --"),
        (["--", "fedrated"], "Did you mean 'federated'?"),
        (["--", "submit"], "submit is not one of the commands"),
        (["--", "python", "-m", "federated"], "Write the command alone, such as: -- federated"),
        (["cluster=locl", "--", "federated"], "Did you mean 'local'?"),
        (["cluster.nodes=2", "--", "federated"], "cluster=local has no key nodes"),
        (["dry_run=yes", "--", "federated"], "dry_run=yes must be true or false"),
        (["storage=/shared", "cluster=ray", "--", "federated"], "storage=/shared is not a URL"),
        (["storage=gss://b", "cluster=ray", "--", "federated"], "Did you mean 'gs'?"),
        (["storage=s3://b", "--", "federated"], "heliotrope mirror storage=s3://b"),
        (["storage=s3://b", "cluster=ray", "--", "list"], "and list has none"),
        (["dryrun=true", "--", "federated"], "Did you mean 'dry_run'?"),
        (["--", "federated", "federated.round=3"], "Did you mean 'federated.rounds'?"),
        (["--", "federated", "seed=1,2"], "add -m (--multirun)"),
        (["--", "federated", "federated.rounds=0"], "federated.rounds=0"),
        (["--", "federated", "--experiment=quickstart"], "no dashes"),
        (["--", "distributed", "cluster=local"], "heliotrope submit cluster=local -- COMMAND"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_sent(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["submit", *words]) == ConfigError.exit_code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_file_of_a_cluster_says_what_its_signature_says(name: str) -> None:
    written = OmegaConf.load(config.conf_dir() / "cluster" / f"{name}.yaml")
    keys = registry.entry("cluster", name).signature.keys
    by_code = {key: each.default for key, each in keys.items()}
    assert OmegaConf.to_container(written) == {"name": name, **by_code}
