"""`heliotrope submit cluster=kuberay`, with a `kubectl` that answers as a cluster would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT, environment

SUBMIT = (sys.executable, "-m", "heliotrope", "submit", "cluster=kuberay", "cluster.image=mine:1")

# Each call is noted; the n-th question for the state is answered with the n-th line of `states`.
KUBECTL = """#!/bin/sh
cd {folder}
echo "$*" >>calls
case "$*" in
  *create*) cat >sent; echo rayjob.ray.io/heliotrope-list-abcde ;;
  *logs*) echo "a line of the command" ;;
  *get*) echo x >>asked; n=$(wc -l <asked); last=$(wc -l <states)
         [ $n -le $last ] || n=$last
         echo '{{"status": '"$(sed -n ${{n}}p states)"'}}' ;;
esac
"""


def _with_kubectl(folder: Path, *states: str) -> dict[str, str]:
    """Return the environment of a machine whose cluster goes through `states`."""
    script = folder / "bin/kubectl"
    script.parent.mkdir()
    script.write_text(KUBECTL.format(folder=folder))
    script.chmod(0o755)
    (folder / "states").write_text("".join(f"{state}\n" for state in states))
    return environment() | {"PATH": f"{script.parent}:{os.environ['PATH']}"}


def _state(name: str, **more: str) -> str:
    also = "".join(f', "{key}": "{value}"' for key, value in more.items())
    return f'{{"jobDeploymentStatus": "{name}"{also}}}'


def test_a_job_that_the_operator_refuses_has_ended(tmp_path: Path) -> None:
    said = "authOptions need Ray of 2.52 or later"
    refused = _state("ValidationFailed", reason="ValidationFailed", message=said)
    done = subprocess.run(
        [*SUBMIT, "--", "list"],
        cwd=ROOT,
        env=_with_kubectl(tmp_path, refused),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"rayjob default/heliotrope-list-abcde: {said}\n" in done.stderr
    assert "logs" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (_state("Complete", jobStatus="SUCCEEDED"), 0),
        (_state("Failed", jobStatus="FAILED", message="Job failed with exit code 3, logs"), 3),
        (_state("Failed", reason="DeadlineExceeded"), 1),
    ],
)
def test_a_job_is_sent_as_shown_and_followed_to_its_exit_code(
    last: str, code: int, tmp_path: Path
) -> None:
    env = _with_kubectl(tmp_path, _state("Initializing"), _state("Running"), last)
    shown = subprocess.check_output(
        [*SUBMIT, "dry_run=true", "--", "list"], cwd=ROOT, env=env, text=True
    )
    assert not (tmp_path / "calls").exists()
    done = subprocess.run(
        [*SUBMIT, "--", "list"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "sent").read_text() == shown.removesuffix("\n")
    assert done.stdout == "a line of the command\n"
    assert "rayjob default/heliotrope-list-abcde: Initializing\n" in done.stderr


def test_ctrl_c_removes_the_job(tmp_path: Path) -> None:
    env = _with_kubectl(tmp_path, _state("Running"))
    job = subprocess.Popen([*SUBMIT, "--", "list"], cwd=ROOT, env=env)
    deadline = time.monotonic() + 60
    while not (tmp_path / "asked").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    job.send_signal(signal.SIGINT)
    assert job.wait(30) == 130
    assert "delete rayjob heliotrope-list-abcde" in (tmp_path / "calls").read_text()


def test_a_missing_kubectl_and_a_cluster_that_does_not_answer_are_named(tmp_path: Path) -> None:
    (tmp_path / "kubectl").write_text(
        "#!/bin/sh\necho 'The connection to the server was refused' >&2; exit 1\n"
    )
    for mode, said in ((0o644, "needs the command kubectl"), (0o755, "server was refused")):
        (tmp_path / "kubectl").chmod(mode)
        done = subprocess.run(
            [*SUBMIT, "--", "list"],
            cwd=ROOT,
            env=environment() | {"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert said in done.stderr
