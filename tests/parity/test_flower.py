"""Parity 4: Flower's strategies give through our engine what they give in its own simulation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from federated.job import run_job
from heliotrope import registry
from heliotrope.config import Run
from tests.support import compose, saved_by

_ROOT = Path(__file__).parents[2]
_FLOWERS = [name for name in registry.names("strategy") if name.startswith("flower_")]
_SETTINGS = {
    "flower_fedprox": ["federated.strategy.proximal_mu=0.5"],
    "flower_fedavgm": ["federated.strategy.server_momentum=0.5"],
    "flower_fedtrimmedavg": ["federated.strategy.beta=0.25"],
    "flower_krum": ["federated.strategy.num_malicious_nodes=1"],
    "flower_multikrum": ["federated.strategy.num_nodes_to_select=3"],
    "flower_bulyan": ["federated.strategy.num_malicious_nodes=1"],
    "flower_qfedavg": ["federated.strategy.q=0.5"],
}


def _run(strategy: str) -> Run:
    return compose(
        "federated",
        f"federated/strategy={strategy}",
        *_SETTINGS.get(strategy, []),
        "model.hidden=[8]",
        "model.dropout=0.2",
        "optimizer.momentum=0.5",
        "federated.rounds=3",
        "federated.clients_per_round=8",
        "federated.partition.clients=8",
        "federated.partition.alpha=1.0",
        "federated.batch_size=16",
        "seed=3",
    )


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The final arrays of every strategy, trained by Flower's simulation."""
    folder = tmp_path_factory.mktemp("flower")
    configs = []
    for strategy in _FLOWERS:
        configs.append(folder / f"{strategy}.yaml")
        configs[-1].write_text(OmegaConf.to_yaml(OmegaConf.structured(_run(strategy))))
    environment = os.environ | {
        "PYTHONPATH": str(_ROOT),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "flower_oracle.py", folder, *configs],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("strategy", _FLOWERS)
def test_our_engine_gives_what_flower_gives(strategy: str, flower: Path, tmp_path: Path) -> None:
    run_job(_run(strategy), tmp_path)

    ours = saved_by(tmp_path)
    assert ours.progress == 3
    theirs = np.load(flower / f"{strategy}.npz")
    assert set(theirs) == set(ours.model)
    for name, value in ours.model.items():
        np.testing.assert_allclose(value.numpy(), theirs[name], rtol=2e-4, atol=2e-5, err_msg=name)
