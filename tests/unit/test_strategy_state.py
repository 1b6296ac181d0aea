"""What a strategy keeps between rounds is saved whole, or refused before the first."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg

from federated.flower.messages import read_arrays, to_record
from federated.strategies.state import check_savable, restore, snapshot
from heliotrope.errors import CheckpointError, ConfigError
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint


class _Keeps(FedAvg):
    """A stranger's strategy with all kinds of memory."""

    def __init__(self, *, used: bool) -> None:
        super().__init__()
        self.function = len
        self.seen: dict[Any, Any] = {}
        self.optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
        self.torch_draws = torch.Generator().manual_seed(1)
        self.numpy_draws = np.random.default_rng(1)
        self.python_draws = random.Random(1)
        if used:
            self.use()

    def use(self) -> None:
        self.seen = {
            1: torch.arange(3),
            "1": np.arange(4, dtype=np.int16),
            ("a", 2): [{"deep": [torch.eye(2, dtype=torch.float64), (None, True, 2.5)]}],
        }
        self.momentum = {"w": np.float32(3.25), "v": np.array(7.0)}
        self.recent: deque[float] = deque([1.0, 2.0], 2)
        self.names = {"b", "a"}
        self.arrays = to_record({"w": torch.ones(2, 2)})
        self.metrics = MetricRecord({"loss": [1.0, 2.0]})
        (weight,) = self.optimizer.param_groups[0]["params"]
        weight.grad = torch.ones(2)
        self.optimizer.step()
        torch.rand(5, generator=self.torch_draws)
        self.numpy_draws.random(5)
        self.python_draws.random()


def _through_a_checkpoint(strategy: FedAvg, other: FedAvg, directory: Path) -> None:
    arrays, state = snapshot(strategy)
    checkpoint.save(directory, Checkpoint(1, {"w": torch.zeros(1)}, arrays, {"strategy": state}))
    saved = checkpoint.load(checkpoint.path_of(directory, 1))
    restore(other, saved.arrays, saved.state["strategy"])


def test_tensors_arrays_nested_values_and_generators_are_saved(tmp_path: Path) -> None:
    before, after = _Keeps(used=True), _Keeps(used=False)
    _through_a_checkpoint(before, after, tmp_path)

    assert torch.equal(after.seen[1], torch.arange(3))
    assert after.seen["1"].dtype == np.int16
    ((deep,),) = (after.seen[("a", 2)],)
    assert torch.equal(deep["deep"][0], torch.eye(2, dtype=torch.float64))
    assert deep["deep"][1] == (None, True, 2.5)
    assert isinstance(after.momentum["w"], np.float32)
    assert after.momentum["w"] == 3.25
    assert after.recent == deque([1.0, 2.0], 2)
    assert after.recent.maxlen == 2
    assert after.names == {"a", "b"}
    assert isinstance(after.arrays, ArrayRecord)
    assert torch.equal(read_arrays(after.arrays)["w"], torch.ones(2, 2))
    assert after.metrics == before.metrics
    assert after.function is len
    moments = after.optimizer.state_dict()["state"][0]
    assert torch.equal(moments["exp_avg"], before.optimizer.state_dict()["state"][0]["exp_avg"])
    draws = [
        (
            torch.rand(3, generator=each.torch_draws).tolist(),
            each.numpy_draws.normal(size=3).tolist(),
            each.python_draws.random(),
        )
        for each in (before, after)
    ]
    assert draws[0] == draws[1]


class _Secret:
    """What no checkpoint can hold."""


class _Unsavable(FedAvg):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.memory = {"client 3": [value]}


class _SaysItself(_Unsavable):
    def __init__(self, value: object) -> None:
        super().__init__(value)
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


@pytest.mark.parametrize("value", [_Secret(), np.array([_Secret()]), iter([1])])
def test_state_that_cannot_be_saved_is_refused_by_name(value: object) -> None:
    with pytest.raises(ConfigError, match=r"_Unsavable keeps memory\.client 3\[0\].*state_dict"):
        check_savable(_Unsavable(value))


def test_a_class_that_saves_itself_is_asked_and_nothing_else_is_saved(tmp_path: Path) -> None:
    before, after = _SaysItself(_Secret()), _SaysItself(_Secret())
    before.count = 5
    check_savable(before)
    _through_a_checkpoint(before, after, tmp_path)
    assert after.count == 5


def test_what_was_made_after_the_start_and_saves_itself_is_asked_to_be_made_there() -> None:
    before = _Keeps(used=True)
    arrays, state = snapshot(before)
    after = _Keeps(used=False)
    del after.optimizer
    with pytest.raises(ConfigError, match=r"optimizer of _Keeps cannot be restored"):
        restore(after, arrays, state)


def test_the_state_that_an_earlier_version_wrote_is_refused() -> None:
    before = {"current_arrays": {"kind": "record", "keys": ["w"]}}
    with pytest.raises(CheckpointError, match="earlier version"):
        restore(FedAvg(), {"current_arrays/0": torch.zeros(1)}, before)
