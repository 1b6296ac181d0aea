"""Which rank the others waited for in vain: they ask each other when a collective times out."""

from __future__ import annotations

import re
import time
from datetime import timedelta

from torch.distributed import Store  # type: ignore[attr-defined]

from heliotrope.background import in_background

from .attempt import Place

__all__ = ["HungRank", "missing_ranks", "timed_out"]

_TIMED_OUT = re.compile(r"timed out|timeout", re.IGNORECASE)
_ROLL_CALL = 3.0  # seconds for the ranks that did come to say so: they time out together


class HungRank(Exception):  # noqa: N818 - the failure of a worker, not a user's error
    """Ranks that did not come to an exchange between all of them in time."""

    def __init__(self, ranks: tuple[int, ...], seconds: float) -> None:
        super().__init__(ranks, seconds)
        self.ranks = ranks
        self.seconds = seconds

    def __str__(self) -> str:
        """Name the ranks and the key to raise if they were only slow."""
        names = ", ".join(map(str, self.ranks)) or "none"
        return (
            f"waited {self.seconds:g} s for the other workers; missing: rank {names}. If they "
            f"were only slow, raise distributed.collective_timeout={self.seconds:g}"
        )


def timed_out(error: RuntimeError) -> bool:
    """Return whether a collective failed because a rank did not come in time."""
    return _TIMED_OUT.search(str(error)) is not None


def missing_ranks(store: Store, place: Place) -> tuple[int, ...]:
    """Call the roll in `store`; return who does not answer. Each rank that came must call it.

    The store lives in the process of rank 0, or of torchrun's agent. If it does not answer
    either, rank 0 is the one that is missing.
    """
    answers = in_background(lambda: _roll_call(store, place))
    try:
        return answers.result(timeout=2 * _ROLL_CALL)
    except Exception:  # noqa: BLE001 - whatever is wrong with the store
        return (0,)


def _roll_call(store: Store, place: Place) -> tuple[int, ...]:
    store.set_timeout(timedelta(seconds=_ROLL_CALL))
    store.set(f"came/{place.rank}", "1")
    deadline = time.monotonic() + _ROLL_CALL
    missing = list(range(place.world_size))
    while missing and time.monotonic() < deadline:
        missing = [rank for rank in missing if not store.check([f"came/{rank}"])]
        time.sleep(0.05)
    return tuple(missing)
