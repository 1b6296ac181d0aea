"""Commands, exit codes and help."""

from __future__ import annotations

import builtins
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from heliotrope import cli
from heliotrope.commands import evaluate, generate, predict
from heliotrope.config import Mode, Run
from heliotrope.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    HeliotropeError,
    PartitionError,
    QuorumError,
    ResourceError,
    RunDirectoryError,
    RunFailedError,
    WorkerError,
)
from heliotrope.shell import typed
from tests.support import MODES, ROOT, Started, Type, command, experiments, raising

# --- one run ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_run_gets_its_config_and_a_directory_of_its_own(
    mode: Mode, type_: Type, tmp_path: Path
) -> None:
    job = Started()
    assert type_(mode, "experiment=quickstart", "seed=5", job=job) == 0
    (run,), (directory,) = job.runs, job.directories
    assert (run.name, run.seed) == ("quickstart", 5)
    assert directory.is_absolute()
    assert directory.parent == tmp_path / "runs" / "quickstart" / mode


def test_the_directory_can_be_chosen(type_: Type, tmp_path: Path) -> None:
    job = Started()
    assert type_("federated", "hydra.run.dir=here/it is", job=job) == 0
    assert job.directories == [tmp_path / "here/it is"]


def test_a_new_directory_holds_the_overrides_and_nothing_of_hydra(
    type_: Type, tmp_path: Path
) -> None:
    job = Started()
    words = ("experiment=quickstart", "seed=3", "tracking.mlflow=http://me:secret@host")
    assert type_("federated", *words, job=job) == 0
    (note,) = job.directories[0].iterdir()
    assert json.loads(note.read_text())["overrides"][0] == "experiment=quickstart"
    assert "seed=3" in note.read_text()
    assert "secret" not in note.read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("not of a run")
    assert type_("federated", "hydra.run.dir=mine", job=job) == 0
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_overrides_may_refer_to_other_keys(type_: Type) -> None:
    job = Started()
    assert type_("federated", "seed=4", "name=run-${seed}", job=job) == 0
    assert job.runs[0].name == "run-4"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigError, 2),
        (DataError, 2),
        (PartitionError, 2),
        (ResourceError, 2),
        (RunDirectoryError, 2),
        (RunFailedError, 1),
        (CheckpointError, 1),
        (WorkerError, 1),
        (QuorumError, 1),
    ],
)
def test_expected_errors_end_in_their_code_and_one_line(
    kind: type[HeliotropeError], code: int, type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type_("federated", job=raising(kind("what, where, what next"))) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: what, where, what next\n")


def test_an_unforeseen_error_is_a_failure_with_its_traceback(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type_("federated", job=raising(ZeroDivisionError("not foreseen"))) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.rstrip().endswith("ZeroDivisionError: not foreseen")


def test_a_full_disk_below_the_output_is_one_line(
    type_: Type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prints(_run: Run, _directory: Path) -> None:
        with open("/dev/full", "w", buffering=1) as full:  # noqa: PTH123 - as sys.stdout is opened
            full.write("a line\n")

    assert type_("federated", job=Started(prints)) == 1
    with suppress(OSError), open("/dev/full", "w", buffering=1) as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["runs"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("error: a file, or what is printed, could not be written: No space")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("data=table", "data.path=a.csv", "data.target=x"), "data.path=a.csv: there is no such f"),
        (("data=texts", "data.path=here", "data.test=b"), "data.test=b: there is no such folder"),
        (("metrics=[aurok]",), "aurok is not one of auroc, .* Did you mean 'auroc'?"),
    ],
)
def test_what_is_not_there_is_refused_before_the_job_is_begun(
    overrides: tuple[str, ...],
    said: str,
    type_: Type,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here").mkdir()
    job = Started()
    assert type_("distributed", *overrides, job=job) == 2
    assert job.runs == []
    assert re.search(said, capsys.readouterr().err.replace(f"{tmp_path}/", ""))


def test_ctrl_c_ends_in_130_and_says_how_to_continue(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_run: Run, directory: Path) -> None:
        (directory / "config.yaml").touch()
        raise KeyboardInterrupt

    job = Started(interrupted)
    assert type_("federated", job=job) == 130
    err = capsys.readouterr().err
    assert f"resume=true hydra.run.dir={job.directories[0]}" in err
    assert err.rstrip().endswith("interrupted")


def test_what_is_to_be_typed_to_continue_can_be_typed(
    type_: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(_run: Run, directory: Path) -> None:
        (directory / "config.yaml").touch()
        raise KeyboardInterrupt

    job = Started(interrupted)
    place = tmp_path / "lr=0.1, it's café (2)"
    assert type_("federated", *shlex.split(typed("hydra.run.dir", place)), job=job) == 130
    hint = capsys.readouterr().err.partition("continue it: ")[2].splitlines()[0]
    again = Started()
    assert type_("federated", *shlex.split(hint), job=again) == 0
    assert again.directories == job.directories == [place]
    assert again.runs[0].resume


def test_ctrl_c_before_there_is_a_run_promises_nothing(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type_("federated", job=raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.fixture
def sigterm_handler() -> Iterator[Callable[..., None]]:
    """Handle SIGTERM, as a program around a run may, and restore what was there before."""

    def handler(*_arguments: object) -> None: ...

    original = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, original)


def test_sigterm_unwinds_the_run_and_is_handled_as_before_afterwards(
    type_: Type, sigterm_handler: Callable[..., None]
) -> None:
    unwound = []

    def terminated(_run: Run, _directory: Path) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            unwound.append(True)

    with pytest.raises(SystemExit) as caught:
        type_("federated", job=Started(terminated))
    assert caught.value.code == 143
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) is sigterm_handler


def test_a_file_that_cannot_be_read_is_not_called_a_directory(
    type_: Type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.open

    def denied(path: str, *arguments: Any, **keywords: Any) -> Any:
        if str(path).endswith("/conf/config.yaml"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(builtins, "open", denied)
    assert type_("federated", "experiment=quickstart", job=Started()) == 2
    assert "config.yaml cannot be read: Permission denied." in capsys.readouterr().err


@pytest.mark.parametrize(("key", "flags"), [("hydra.run.dir", []), ("hydra.sweep.dir", ["-m"])])
def test_a_directory_that_cannot_be_made_is_named(
    key: str, flags: list[str], type_: Type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    assert type_("federated", f"{key}=taken/x", "seed=1", *flags, job=Started()) == 2
    assert f"{key}=taken/x cannot be made: Not a directory" in capsys.readouterr().err


# --- help ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_help_shows_how_to_start_and_every_choice(
    mode: Mode, type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Started()
    with pytest.raises(SystemExit) as caught:
        type_(mode, "--help", "optimizer=adam", job=job)
    assert caught.value.code == 0
    assert job.runs == []
    out = capsys.readouterr().out
    assert f"python -m {mode} experiment=quickstart" in out
    assert "experiment=" + "|".join(experiments()) in out
    assert "_schema" not in out
    other = "federated" if mode == "distributed" else "distributed"
    assert f"  {other}=" not in out, "a choice without effect in this mode is offered"
    assert "betas" in out, "the keys shown are not those of the choices made"


def test_cfg_job_prints_the_composed_config_as_yaml(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Started()
    assert type_("federated", "--cfg", "job", "experiment=fashion_cnn", "seed=3", job=job) == 0
    assert job.runs == []
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["name"] == "cnn"
    assert shown["seed"] == 3


# --- the `heliotrope` command -------------------------------------------------------------


def test_without_a_command_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_all_commands(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    out = capsys.readouterr().out
    for name in ("distributed", "federated", *cli._COMMANDS):
        assert f"\n  {name} " in out


@pytest.mark.parametrize("command", cli._COMMANDS)
def test_help_of_a_command_names_all_that_it_takes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: heliotrope {command} ")
    keys = {"evaluate": evaluate._EVALUATE_KEYS, "predict": predict._KEYS}
    for key in keys.get(command, generate._KEYS if command == "generate" else ()):
        assert f"{key}=" in out


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["federate", "seed=1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "'federate'" in err
    assert "Did you mean 'federated'?" in err


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_started_by_name(
    mode: Mode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Started()
    entry = types.SimpleNamespace(main=lambda: cli.run_mode(mode, job))
    monkeypatch.setattr(cli, "mode_module", lambda *names: {(mode, "__main__"): entry}[names])
    monkeypatch.setattr(sys, "argv", ["heliotrope"])
    assert cli.main([mode, "seed=9"]) == 0
    assert job.runs[0].seed == 9


# --- real processes -----------------------------------------------------------------------


def test_a_typo_in_a_real_process(tmp_path: Path) -> None:
    done = command("federated", "federated.roundz=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: federated.roundz=3: there is no such key. Did you mean 'federated.rounds'?\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_subcommand_in_a_real_process(tmp_path: Path) -> None:
    done = command("heliotrope", "evaluate", "rum=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Did you mean 'run'?" in done.stderr


def test_a_wrong_key_does_not_wait_for_torch(tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from distributed.__main__ import main\n"
        "sys.argv = ['x', 'seed=x']\n"
        "assert main() == 2\n"
        "slow = {'torch', 'ray', 'flwr', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
