"""Data-parallel runs on nodes that do not see the run's directory: two Ray nodes on this machine.

The second node has a mount namespace of its own, in which the folder of the runs is empty.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.distributed_runs import RAY, TORCHRUN, checkpoints, process, train, wait_until
from tests.running_cluster import started_cluster
from tests.support import assert_same_tensors, events_of, weights_of

_ISOLATED = ["unshare", "--mount", "true"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_report"),
    pytest.mark.skipif(
        subprocess.run(_ISOLATED, check=False, capture_output=True).returncode != 0,
        reason="needs to make a mount namespace, as root may",
    ),
]


@pytest.mark.parametrize(
    ("head_cpus", "cpus", "own"),
    [
        pytest.param(1, 1, (), id="a rank on each node"),
        pytest.param(
            0,
            2,
            ("distributed.strategy=local_sgd", "distributed.sharded_checkpoints=true"),
            id="both elsewhere, each with its part",
        ),
    ],
)
def test_a_run_that_is_stopped_goes_on_from_what_came_to_the_driver(
    head_cpus: int,
    cpus: int,
    own: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden = tmp_path / "runs"
    hidden.mkdir()
    run, more = hidden / "run", ("distributed.epochs=60", *own)
    alone = train(tmp_path / "alone", *TORCHRUN, *own, epochs=60)
    with started_cluster(cpus, token=True, nodes=2, head_cpus=head_cpus, hidden=hidden) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        with process(run, *RAY, *more) as job:
            wait_until(lambda: checkpoints(run) > 1 or job.poll() is not None)
            job.send_signal(signal.SIGTERM)
            output = job.ended(120)
        assert job.returncode == 143, output
        before = len(events_of(run, "train"))
        with process(run, *RAY, *more, "resume=true") as job:
            output = job.ended(180)
        assert job.returncode == 0, output
    assert 0 < before < 60
    assert "resuming after epoch" in output
    assert "not on a file system with" in (run / "run.log").read_text()
    assert "[rank 1]" in (run / "run.log").read_text()
    assert_same_tensors(weights_of(alone), weights_of(run))
    assert events_of(run) == events_of(alone)
    assert checkpoints(run) == checkpoints(alone)
    assert not list((run / "checkpoints").glob(".*"))
