"""Preparation among clients: what they tell is named and counted, and each may keep to its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from federated.components import build_components
from federated.engine.context import divide, prepared_for
from federated.simulation import simulate
from heliotrope.data import Dataset, load
from heliotrope.data.preparation import Statistics
from tests.support import compose

OVERRIDES = (
    "experiment=quickstart",
    "model.hidden=[4]",
    "federated.rounds=1",
    "federated.holdout_fraction=0",
)


def heart(*overrides: str) -> tuple[Dataset, list[torch.Tensor]]:
    """Return the heart data, and what each client has of the field `numeric`."""
    run = compose("federated", "data=heart", "federated/partition=natural", *overrides)
    run.federated.clients_per_round = 4
    dataset = load(run.data, run.seed)
    parts = divide(run, dataset)
    examples = prepared_for(parts, dataset)
    return dataset, [examples.take(torch.from_numpy(rows))["numeric"] for rows in parts]


def test_the_federated_fit_is_the_pooled_one_to_the_digit() -> None:
    run = compose("federated", "data=heart", "federated/partition=natural")
    run.federated.clients_per_round = 4
    dataset = load(run.data, run.seed)
    fitting = dataset.fitting
    assert fitting is not None
    told = [
        Statistics.of(fitting.steps, fitting.train.subset(rows), "training")
        for rows in divide(run, dataset)
    ]
    assert told[0] + told[1] + told[2] + told[3] == fitting.statistics
    exchange = fitting.exchange(divide(run, dataset))
    assert exchange.bytes_up == sum(len(one.to_bytes()) for one in told)
    assert exchange.told == (
        "mean, deviation and number of values of 6 columns",
        "counts of 19 values of 7 columns",
    )


def test_each_client_can_be_scaled_by_its_own_rows() -> None:
    pooled, by_pool = heart()
    own, by_own = heart("data.fit=per_client")
    assert pooled.info.numeric[:6] == own.info.numeric[:6]
    age = pooled.info.numeric.index("age")
    assert max(abs(client[:, age].mean().item()) for client in by_pool) > 0.1
    assert max(abs(client[:, age].mean().item()) for client in by_own) < 1e-5


@pytest.mark.parametrize(
    ("fit", "told", "each"),
    [
        ("training", ["mean and deviation of the pixels"], 24),
        ("per_client", ["mean and deviation of the pixels"], 24),  # for rows of no client
        ("none", [], 0),
    ],
)
def test_the_result_names_and_counts_what_clients_tell(
    tmp_path: Path, fit: str, told: list[str], each: int
) -> None:
    run = compose("federated", *OVERRIDES, f"data.fit={fit}")
    parts = build_components(run)
    simulate(run, tmp_path, parts, None)
    result = json.loads((tmp_path / "result.json").read_text())
    preparation = json.dumps(parts.preparation.to_json()).encode()
    assert result["preparation"] == {
        "fit": fit,
        "told": told,
        "bytes_up": 10 * each,
        "bytes_down": 10 * len(preparation) if each else 0,
        "charged": False,
    }
    weights = 4 * result["parameters"] * 10
    assert result["bytes_up"] - result["preparation"]["bytes_up"] == weights
    assert result["bytes_down"] - result["preparation"]["bytes_down"] == weights
