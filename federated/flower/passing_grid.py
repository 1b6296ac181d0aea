"""A Grid over another one, to which it passes on what it does not do itself."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun

__all__ = ["PassingGrid"]


class PassingGrid(Grid):
    """Passes on everything but messages, which a subclass looks at."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def set_run(self, run: FlowerRun) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> FlowerRun:
        return self._grid.run
