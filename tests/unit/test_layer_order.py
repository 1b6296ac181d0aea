"""FSDP's workers run the same layers in turn: who does otherwise is named before it gathers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distributed.strategies import layer_order
from distributed.strategies.layer_order import LayerOrder
from distributed.topology import Topology
from heliotrope.errors import RunFailedError


class _Layers(nn.Module):
    """Runs the layers that it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(3, 3) for name in "abc"})

    def forward(self, inputs: Tensor, names: str) -> Tensor:
        for name in names:
            inputs = self.layers[name](inputs)
        return inputs


def order_of(model: _Layers, world: int) -> LayerOrder:
    return LayerOrder(dict(model.layers.items()), Topology(0, world), torch.device("cpu"))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("ac", "rank 0 runs c where its first pass runs b"),
        ("ab", "rank 0 ends the pass where its first pass runs c"),
        ("abca", "rank 0 runs a where its first pass ends"),
    ],
)
def test_a_pass_unlike_the_first_is_refused_before_the_layer_runs(names: str, found: str) -> None:
    model, inputs = _Layers(), torch.ones(2, 3)
    order = order_of(model, 1)
    for _ in range(2):
        with order.checked():
            outputs = model(inputs, "abc")
    model(inputs, "c")  # outside of a pass, as in one backward, nothing is checked
    assert outputs.shape == (2, 3)
    remedy = r".*Add 0 times .*strategy=local_sgd"
    with pytest.raises(RunFailedError, match=found + remedy), order.checked():
        model(inputs, names)


def test_the_first_pass_is_compared_with_that_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = (0, 2, -1)
    came: list[int] = []

    def gathered(mine: Tensor, _: Topology) -> tuple[Tensor, int]:
        came.append(int(mine))
        return torch.cat([mine, torch.tensor([others[len(came) - 1]])]), 0

    monkeypatch.setattr(layer_order, "gathered_rows", gathered)
    model = _Layers()
    with (
        pytest.raises(RunFailedError, match="rank 1 runs c where rank 0 runs b"),
        order_of(model, 2).checked(),
    ):
        model(torch.ones(2, 3), "abc")
    assert came == [0, 1]
