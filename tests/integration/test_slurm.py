"""`heliotrope submit cluster=slurm`, beside a real Slurm of two nodes made on this machine.

The Slurm of each test lives in namespaces of its own: see tests/slurm_cluster.sh.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed_runs import MOMENTUM, RAY, SMALL, TORCHRUN, checkpoints, result_of, train
from tests.support import ROOT, environment, weights_of

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare", "nsenter")
MISSING = [name for name in NEEDED if shutil.which(name) is None]


def _missing() -> str:
    """Return what a Slurm in namespaces of its own needs and this machine has not."""
    if MISSING or os.geteuid() != 0:
        return ", ".join(MISSING) or "root"
    isolated = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "true"]
    return "" if subprocess.run(isolated, check=False).returncode == 0 else "namespaces"


real_slurm = pytest.mark.skipif(
    bool(_missing()),
    reason="needs root and Debian's slurmctld, slurmd, munge, slurm-client, iproute2; missing: "
    f"{_missing()}",
)

SUBMIT = f"{sys.executable} -m heliotrope submit cluster=slurm"
TWO_NODES = "cluster.nodes=2 cluster.notice_seconds=1"

# Shell functions of the scenarios: wait until a run has printed something, or the shell gives up.
HELPERS = """
until_seen() { for _ in $(seq 400); do grep -qs "$1" "$2" && return; sleep 0.2; done; exit 99; }
"""


def _beside_slurm(folder: Path, scenario: str, seconds: float = 200) -> tuple[int, str]:
    """Run shell commands beside a Slurm of their own; return their exit code and output."""
    done = subprocess.run(
        [ROOT / "tests/slurm_cluster.sh", folder / "slurm", "bash", "-c", HELPERS + scenario],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    return done.returncode, done.stdout


def _training(directory: Path, *overrides: str) -> str:
    """Return the words of a run of two workers; neither node has room for both."""
    return " ".join(("distributed", *SMALL, MOMENTUM, *overrides, f"hydra.run.dir={directory}"))


@real_slurm
def test_what_slurm_cannot_do_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    refused = f"{SUBMIT} cluster.partition=lnog -- list; echo code $?;"
    beyond = f"{SUBMIT} cluster.partition=short -- list; echo code $?;"
    _, said = _beside_slurm(tmp_path, refused + beyond + "squeue --noheader")
    assert "Slurm has no partition lnog. There are debug, long, short. Did you mean 'long'?" in said
    assert "error: sbatch refuses the job:" in said
    assert "Requested time limit is invalid" in said
    assert said.count("code 2\n") == 2
    assert said.endswith("code 2\n"), "a job was left in the queue"


def test_without_slurm_its_missing_command_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{SUBMIT} -- list".split(),
        cwd=ROOT,
        env=environment() | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cluster=slurm needs the command sinfo, which is not on PATH" in done.stderr


def test_what_a_dry_run_prints_is_what_sbatch_gets(tmp_path: Path) -> None:
    for name, does in {
        "sinfo": "echo debug",
        "sbatch": f"cat >{tmp_path}/sent; echo 7",
        "scontrol": "echo JobState=COMPLETED Reason=None ExitCode=0:0",
    }.items():
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\n{does}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    words = f"cluster.partition=debug -- {_training(tmp_path / 'run')}"
    env = environment() | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    texts = [
        subprocess.check_output(
            f"{SUBMIT} {more} {words}".split(), cwd=ROOT, env=env, text=True, timeout=60
        )
        for more in ("dry_run=true", "")
    ]
    assert (tmp_path / "sent").read_text() == texts[0].removesuffix("\n")


@real_slurm
@pytest.mark.slow
def test_a_preempted_run_of_two_nodes_ends_with_the_undisturbed_result(tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    code, said = _beside_slurm(
        tmp_path,
        f"""
        {SUBMIT} {TWO_NODES} -- {_training(moved, *RAY, "distributed.epochs=40")} & submitted=$!
        until_seen '"epoch": 3' {moved}/metrics.jsonl
        scancel --batch --signal=USR2 1
        wait $submitted
        """,
    )
    assert code == 0, said
    assert (moved / "slurm-1.log").read_text().count("Ray runs on 2 node(s)") == 2
    assert "back into the queue" in said
    assert "attempt 2: starting Ray" in said
    assert "epoch 40/40" in said
    alone = train(tmp_path / "alone", *TORCHRUN, epochs=40)
    one, other = result_of(alone), result_of(moved)
    assert one["metrics"] == other["metrics"]
    assert one["status"] == other["status"] == "completed"
    left, right = weights_of(alone), weights_of(moved)
    assert all(bool((left[name] == right[name]).all()) for name in left)


@real_slurm
@pytest.mark.slow
def test_exit_codes_come_back_and_ctrl_c_ends_the_job_with_a_checkpoint(tmp_path: Path) -> None:
    run = _training(tmp_path / "run", *RAY, "distributed.epochs=500")
    code, said = _beside_slurm(
        tmp_path,
        f"""
        (cd {tmp_path} && {SUBMIT} -- evaluate run=nothing); echo the code is $?
        env --default-signal=INT {SUBMIT} {TWO_NODES} -- {run} & submitted=$!
        until_seen '"epoch": 3' {tmp_path}/run/metrics.jsonl
        kill -INT $submitted
        wait $submitted; echo the other is $?
        scontrol show job 2; squeue --noheader; ps -e | grep -E 'raylet|gcs_server'
        """,
    )
    assert "the code is 2\n" in said, said
    assert "run=nothing is no run directory" in said
    assert "the other is 130\n" in said
    assert "ExitCode=130:0" in said
    assert not (tmp_path / "run/result.json").exists()
    assert checkpoints(tmp_path / "run") > 0
    assert "raylet" not in said
    assert code == 1  # of grep, which finds no Ray


@real_slurm
@pytest.mark.slow
def test_nodes_that_cannot_start_ray_are_named_with_what_it_printed(tmp_path: Path) -> None:
    code, said = _beside_slurm(
        tmp_path,
        f"export RAY_OVERRIDE_RESOURCES=nothing; cd {tmp_path}; {SUBMIT} {TWO_NODES} -- list",
    )
    assert code == 1, said
    assert "error: Ray on n0 ended with exit code" in said
    assert "RAY_OVERRIDE_RESOURCES" in said or "JSON" in said
