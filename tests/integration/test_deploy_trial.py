"""Trial federations of real SuperLinks and SuperNodes, with TLS and node authentication."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support import Command, events_of

pytestmark = pytest.mark.slow

_SMALL = ("experiment=quickstart", "federated.rounds=2", "model.hidden=[8]")


def _result(root: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((root / "run" / "result.json").read_text())
    return found


def _below(root: Path) -> list[str]:
    """Return the command lines of processes that have to do with a deployment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(root) in line and path.parent.name != str(os.getpid()):
            found.append(line)
    return found


@pytest.mark.parametrize(
    "settings",
    [
        ("federated.holdout_fraction=0.1",),
        ("federated/strategy=scaffold", "federated.holdout_fraction=0"),  # with client state
        ("federated/secure_aggregation=secagg", "federated.holdout_fraction=0"),
    ],
    ids=["fedavg", "scaffold", "secure"],
)
def test_a_trial_gives_what_the_simulation_gives(
    tmp_path: Path, heliotrope: Command, settings: tuple[str, ...]
) -> None:
    root = tmp_path / "trial"
    code, said, error = heliotrope("deploy", "trial", *_SMALL, *settings, f"output={root}")
    assert code == 0, error + said
    assert "largest difference of two weights" in said
    assert "federated quickstart  round 2/2" in said
    result = _result(root)
    assert (result["status"], result["rounds"]) == ("completed", 2)
    simulated = json.loads((root / "simulation" / "result.json").read_text())
    for key in ("steps", "examples_seen", "bytes_up", "bytes_down"):
        assert result[key] == simulated[key]
    assert (root / "run" / "report.html").exists()
    assert len(events_of(root / "run", "train")) == 2
    if "federated/strategy=scaffold" in settings:
        for client in range(3):
            kept = root / "nodes" / f"client-{client}" / "state"
            assert {path.stem for path in kept.rglob("*.safetensors")} == {"1", "2"}
    assert _below(root) == []
