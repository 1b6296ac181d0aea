"""A federated run that cannot go on says what to do about what has failed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord

from federated.job import run_job
from federated.remedies import naming, of_failure, of_other_weights
from federated.updates import Failure
from heliotrope import plugin_loading, registry
from heliotrope.config import Run
from heliotrope.errors import RunFailedError
from tests.support import compose

_RAISING = """from heliotrope import plugin
@plugin.schedule
def failing(done: float) -> float:
    raise ValueError("no such user.")
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Exception]:
    """Return a run with a plug-in, and what one of its lines raised."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "mine.py").write_text(_RAISING)
    plugin_loading.load([str(tmp_path / "mine.py")])
    run = compose("federated", "federated.client_timeout=2", f"plugins=[{tmp_path / 'mine.py'}]")
    with pytest.raises(ValueError, match="no such user") as caught:
        registry.entry("schedule", "failing").build({}, done=0.0)
    return run, caught.value


def test_an_error_of_a_plug_in_names_its_line_and_how_to_go_on(
    failing: tuple[Run, Exception], tmp_path: Path
) -> None:
    run, error = failing
    failure = Failure.of(3, error, doing="evaluation: ")
    line = f"ValueError: no such user in {tmp_path}/mine.py, line 4"
    assert failure == Failure(3, f"evaluation: {line}", "raised")
    said = of_failure(run, tmp_path, failure, ArrayRecord())
    assert said.endswith(f"resume=true hydra.run.dir={tmp_path} plugins_changed=accept.")
    assert "optimizer.lr" not in said
    with (
        pytest.raises(RunFailedError, match=rf"^round 2: fedx raised {line}\. .*=accept\.$"),
        naming(run, tmp_path, "round 2: fedx"),
    ):
        raise error


def test_simulated_attackers_are_a_reason_why_clients_diverged(tmp_path: Path) -> None:
    run = compose("federated", "federated/attack=scaling")
    failure = Failure(3, "update rejected: w holds NaN or infinite values", "diverged")
    said = of_failure(run, tmp_path, failure, ArrayRecord())
    assert "federated/attack=scaling" in said
    assert "geometric_median" in said
    assert "optimizer.lr" not in said


def test_noise_is_a_reason_why_clients_diverged(tmp_path: Path) -> None:
    run = compose("federated", "federated/privacy=central", "federated.privacy.clip=1e30")
    failure = Failure(3, "update rejected: w holds NaN or infinite values", "diverged")
    said = of_failure(run, tmp_path, failure, ArrayRecord())
    assert "lower federated.privacy.clip=1e+30" in said


def test_other_failures_have_remedies_of_their_own(
    failing: tuple[Run, Exception], tmp_path: Path
) -> None:
    run, _ = failing
    late = of_failure(run, tmp_path, Failure.of(3, TimeoutError("not done")), ArrayRecord())
    assert late.startswith("Raise federated.client_timeout=2: resume=true ")
    apart = of_failure(run, tmp_path, Failure(3, "x is NaN", "diverged"), ArrayRecord())
    assert apart == f"They diverged. Start again: Lower optimizer.lr={run.optimizer.lr:g}."


@pytest.mark.parametrize(
    ("overrides", "named", "others"),
    [
        (
            ("federated/strategy=fedadam", "federated.strategy.eta=1e38"),
            "federated.strategy.eta=1e+38",
            "optimizer.lr",
        ),
        (
            ("federated/strategy=fedadagrad", "federated.strategy.eta=1e30"),
            "federated.strategy.eta=1e+30",
            "optimizer.lr",
        ),
        (
            ("federated/strategy=fedavgm", "federated.strategy.server_learning_rate=1e37"),
            "federated.strategy.server_learning_rate=1e+37",
            "optimizer.lr",
        ),
        (("optimizer.lr=1e35",), "optimizer.lr=1e+35", "federated.strategy"),
        (
            ("federated/strategy=fedadam", "optimizer.lr=1e35"),
            "optimizer.lr=1e+35",
            "have led to weights",
        ),
    ],
)
@pytest.mark.usefixtures("no_report")
def test_the_rate_at_fault_is_named(
    overrides: tuple[str, ...], named: str, others: str, tmp_path: Path
) -> None:
    small = ("experiment=quickstart", "federated.rounds=4", "federated.local_epochs=1")
    run = compose("federated", *small, "federated.client_training=sequential", *overrides)
    with pytest.raises(RunFailedError) as caught:
        run_job(run, tmp_path / "run")
    assert named in str(caught.value)
    assert others not in str(caught.value)


def test_a_strategy_that_gives_other_weights_is_told_which() -> None:
    def record(**shapes: tuple[int, ...]) -> ArrayRecord:
        return ArrayRecord({name: torch.zeros(shape) for name, shape in shapes.items()})

    sent = record(a=(2, 3), b=())
    assert of_other_weights(sent, record(b=(1,), a=(2, 3))) is None
    assert of_other_weights(sent, record(a=(2, 3))) == (
        "leaves out b. Return all weights that were sent, and no others."
    )
    assert str(of_other_weights(sent, record(a=(2, 3), b=(), c=(1,)))).startswith("adds c.")
    assert of_other_weights(sent, record(a=(6,), b=())) == (
        "gave a [6], which is [2, 3]. Return it in that shape."
    )
