"""Ranks that torchrun started on nodes of different kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch

from distributed.launch.rendezvous import Rendezvous
from distributed.torchrun_ranks import _agreed_resources
from heliotrope.errors import ConfigError
from tests.support import compose


class _Met:
    """A meeting with ranks on other nodes."""

    def __init__(self, *devices: str) -> None:
        self._others = [{"device": device, "host": f"node{n}"} for n, device in enumerate(devices)]

    def meet(self, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [dict(about), *self._others]


@pytest.fixture(autouse=True)
def node_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.parametrize(
    ("others", "device"), [(["cuda"], "cuda"), (["cpu"], "cpu"), (["cuda", "cpu"], "cpu")]
)
def test_all_ranks_train_on_devices_that_can_talk_to_each_other(
    others: list[str], device: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = compose("distributed", f"distributed.workers={1 + len(others)}")
    assert _agreed_resources(run, cast(Rendezvous, _Met(*others))).device == device
    assert ("too few GPUs on node" in caplog.text) == (device == "cpu")


def test_batches_over_all_ranks_are_refused_if_one_of_them_has_no_gpu() -> None:
    run = compose("distributed", "distributed.sync_batchnorm=true")
    with pytest.raises(ConfigError, match="sync_batchnorm=true needs workers on GPUs"):
        _agreed_resources(run, cast(Rendezvous, _Met("cpu")))
