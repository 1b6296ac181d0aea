"""With FSDP all workers gather a layer's weights at once: all must run the same layers in turn.

Where one leaves a layer out, another layer's weights would be taken for its own, or the workers
wait for one another. So each layer's turn is checked before its weights are gathered: in the first
pass with the other workers, from then on against that pass, which costs no exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from heliotrope.errors import RunFailedError

from ..communication.exchange import gathered_rows
from ..topology import Topology

__all__ = ["LayerOrder"]

_END = -1  # of a pass


class LayerOrder:
    """Raises `RunFailedError` in a pass that runs `layers`, by their names, in another order.

    What a layer does in a backward pass, such as running anew, is not looked at.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], topology: Topology, device: torch.device
    ) -> None:
        self._names = list(layers)
        self._topology = topology
        self._device = device
        self._order: list[int] = []  # of the first pass, `_END` included
        self._place: int | None = None  # in the pass that goes on
        for number, layer in enumerate(layers.values()):
            # Before what gathers the weights.
            layer.register_forward_pre_hook(self._turn_of(number), prepend=True)

    def check_evaluation(self, model: nn.Module) -> None:
        """Check each pass of `model`, of which these are the layers, in evaluation mode."""

        def begin(*_: object) -> None:
            if not model.training:
                self._place = 0

        def end(*_: object) -> None:
            if self._place is not None:
                self._turn(_END)
                self._place = None

        model.register_forward_pre_hook(begin, prepend=True)
        model.register_forward_hook(end)

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Check the forward pass in the block."""
        self._place = 0
        try:
            yield
            self._turn(_END)
        finally:
            self._place = None

    def _turn_of(self, number: int) -> Callable[[nn.Module, object], None]:
        def turn(_module: nn.Module, _inputs: object) -> None:
            if self._place is not None:
                self._turn(number)

        return turn

    def _turn(self, number: int) -> None:
        rank, known = self._topology.rank, _END in self._order
        if not known:
            mine = torch.tensor([number], device=self._device)
            turns = gathered_rows(mine, self._topology)[0].tolist()
            for other, theirs in enumerate(turns):
                if theirs != turns[0]:
                    raise self._refused(other, theirs, f"rank 0 {self._does(turns[0])}")
            self._order.append(number)
        assert self._place is not None
        due = self._order[self._place]
        if number != due:
            raise self._refused(rank, number, f"its first pass {self._does(due)}")
        self._place += 1

    def _does(self, number: int) -> str:
        return "ends the pass" if number == _END else f"runs {self._names[number]}"

    def _refused(self, rank: int, number: int, instead: str) -> RunFailedError:
        return RunFailedError(
            f"distributed.strategy=fsdp needs the same layers in every pass and on every worker, "
            f"but rank {rank} {self._does(number)} where {instead}. Add 0 times the outputs of "
            "layers that are left out, or set distributed.strategy=local_sgd."
        )
