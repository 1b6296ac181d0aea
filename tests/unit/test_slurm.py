"""The batch script that `cluster=slurm` would send, made without Slurm."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from distributed.submit import slurm_job
from heliotrope.cli import main
from heliotrope.errors import ConfigError, RunFailedError


def _script(capsys: pytest.CaptureFixture[str], *words: str, run: str = "list") -> str:
    assert main(["submit", "cluster=slurm", "dry_run=true", *words, "--", *run.split()]) == 0
    return capsys.readouterr().out


def _options(script: str) -> dict[str, str]:
    """Return what the script asks sbatch for, as sbatch reads it."""
    lines = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    words = [word for line in lines for word in shlex.split(line)]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def test_the_keys_become_options_of_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's 100% mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    script = _script(
        capsys,
        *("cluster.nodes=3", "cluster.cpus_per_task=4", "cluster.gpus_per_node=2"),
        *("cluster.partition=long", "cluster.account=physics", "cluster.qos=high"),
        *("cluster.minutes=90", "cluster.notice_seconds=60", "cluster.requeue=false"),
        'cluster.sbatch=["--mem=16G","--exclusive"]',
        'cluster.setup=["module load cuda"]',
    )
    assert script.startswith("#!/bin/bash\n")
    assert _options(script) == {
        "--job-name": "list",
        "--nodes": "3",
        "--ntasks-per-node": "1",
        "--cpus-per-task": "4",
        "--gpus-per-node": "2",
        "--time": "90",
        "--partition": "long",
        "--account": "physics",
        "--qos": "high",
        "--signal": "B:USR2@60",
        "--no-requeue": "",
        "--open-mode": "append",
        "--mem": "16G",
        "--exclusive": "",
        "--chdir": str(folder),
        "--output": f"{tmp_path}/it's 100%% mine/slurm-%j.log",
    }
    *_, setup, command = script.strip().splitlines()
    assert setup == "module load cuda"
    assert "--requeue" not in command


def test_what_is_not_set_is_left_to_slurm(capsys: pytest.CaptureFixture[str]) -> None:
    options = _options(_script(capsys))
    assert not {"--partition", "--account", "--qos", "--gpus-per-node"} & options.keys()
    assert "--requeue" in options


def test_a_run_prints_into_its_directory_and_is_resumed_by_the_same_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = _script(capsys, run=f"distributed seed=4 hydra.run.dir={tmp_path / 'run'}")
    assert _options(script)["--output"] == f"{tmp_path / 'run'}/slurm-%j.log"
    words = shlex.split(script.strip().splitlines()[-1])
    ours = words[words.index("--") + 1 :]
    assert ours[:5] == [sys.executable, "-m", "heliotrope", "distributed", "seed=4"]
    assert ours[5:] == [f"hydra.run.dir={tmp_path / 'run'}", "resume=true"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("cluster.nodes=0", "cluster.nodes=0"),
        ("cluster.cpus_per_task=0", "cluster.cpus_per_task=0"),
        ("cluster.gpus_per_node=-1", "cluster.gpus_per_node=-1"),
        ("cluster.minutes=2", "cluster.notice_seconds=120"),
        ("cluster.wait_seconds=0", "cluster.wait_seconds=0"),
        ("cluster.nodes=two", "cluster.nodes=two"),
        ("cluster.node=2", "Did you mean 'cluster.nodes'?"),
        ('cluster.sbatch=["mem=16G"]', "'mem=16G' is no option of sbatch"),
        ('cluster.partition="a\nb"', "has several lines"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["submit", "cluster=slurm", "dry_run=true", word, "--", "list"])
    assert code == ConfigError.exit_code
    assert said in capsys.readouterr().err


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm whose scontrol says what is in this file, and fails while there is none."""
    said = tmp_path / "said"
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("scontrol", f"cat {said} 2>/dev/null"),
        ("sacct", "exit 1"),
        ("sinfo", "echo main"),
        ("sbatch", "echo 7"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_job, "_ASK_SECONDS", 0.01)
    return said


def test_a_controller_that_does_not_answer_for_a_while_is_asked_again(
    controller: Path, tmp_path: Path
) -> None:
    log = tmp_path / "slurm-7.log"
    log.touch()
    answer = "JobId=7 JobState=COMPLETED Reason=None ExitCode=0:0\n"
    later = threading.Timer(0.3, lambda: controller.write_text(answer))
    later.start()
    try:
        assert slurm_job.SlurmJob("7", log).follow() == 0
    finally:
        later.join()


def test_a_job_that_slurm_does_not_know_is_named(
    controller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_job, "_LOST_SECONDS", 0.1)
    assert not controller.exists()
    with pytest.raises(RunFailedError, match=r"job 7 for 0\.1 s; it may be running"):
        slurm_job.SlurmJob("7", tmp_path / "slurm-7.log").follow()


def test_the_directory_of_the_log_is_made_or_named(
    controller: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    controller.write_text("JobId=7 JobState=COMPLETED Reason=None ExitCode=0:0\n")
    submit = ("submit", "cluster=slurm", "--", "federated")
    assert main([*submit, f"hydra.run.dir={tmp_path}/50%"]) == 0
    assert (tmp_path / "50%").is_dir()
    assert main([*submit, "hydra.run.dir=/proc/none"]) == ConfigError.exit_code
    assert "/proc/none cannot be made for the log" in capsys.readouterr().err


def test_a_job_that_is_sent_from_another_has_no_variables_of_that(
    controller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.write_text("JobId=7 JobState=COMPLETED Reason=None ExitCode=0:0\n")
    sbatch = Path(os.environ["PATH"].partition(":")[0]) / "sbatch"
    sbatch.write_text(f"#!/bin/sh\nenv >{tmp_path}/seen\necho 7\n")
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_CONF", "SLURM_CPU_BIND", "SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "set")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    kept = []
    for job in (None, "6"):
        if job is not None:
            monkeypatch.setenv("SLURM_JOB_ID", job)
        assert main(["submit", "cluster=slurm", "--", "list"]) == 0
        kept.append(
            set(re.findall(r"^(S(?:LURM|RUN)_\w+)=", (tmp_path / "seen").read_text(), re.M))
        )
    assert kept[0] == {"SLURM_CONF", "SLURM_CPU_BIND", "SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK"}
    assert kept[1] == {"SLURM_CONF"}


def test_an_output_that_nobody_reads_leaves_the_job_to_go_on(
    controller: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    controller.write_text("JobId=7 JobState=RUNNING Reason=None ExitCode=0:0\n")
    (tmp_path / "slurm-7.log").write_text("a line\n")
    reader, writer = os.pipe()
    os.close(reader)
    with suppress(BrokenPipeError), open(writer, "w") as closed:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as ended:
            main(["submit", "cluster=slurm", "--", "federated", f"hydra.run.dir={tmp_path}"])
    assert ended.value.code == 128 + signal.SIGPIPE
    assert "nobody reads the output any more; job 7 goes on" in capsys.readouterr().err
