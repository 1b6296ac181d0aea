"""The learning rate over a run."""

from __future__ import annotations

import pytest
import torch

from distributed.schedule import factor, scheduled
from heliotrope.training import Batch


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_decaying_schedule_goes_from_one_towards_zero_without_rising(schedule: str) -> None:
    factors = [factor(schedule, step, 50) for step in range(50)]
    assert factors[0] == 1.0
    assert factors[25] == pytest.approx(0.5)
    assert 0.0 < factors[-1] < 0.03
    assert factors == sorted(factors, reverse=True)


def test_a_constant_schedule_stays() -> None:
    assert {factor("constant", step, 9) for step in range(9)} == {1.0}


def test_each_batch_comes_with_the_rate_of_its_step_in_the_whole_run() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=123.0)
    batches = [Batch(torch.zeros(1), torch.zeros(1), 1.0, 0) for _ in range(4)]
    rates = [
        optimizer.param_groups[0]["lr"]
        for _ in scheduled(batches, optimizer, 0.5, "linear", (4, 8))  # the second of two epochs
    ]
    assert rates == pytest.approx([0.25, 0.1875, 0.125, 0.0625])
