"""Which rank the others waited for in vain: they ask each other when a collective times out."""

from __future__ import annotations

import re
import time
from datetime import timedelta

from torch.distributed import Store  # type: ignore[attr-defined]

from heliotrope.system.background import in_background

from ..topology import Topology

__all__ = ["HungRank", "missing_ranks", "timed_out", "unreachable"]

_TIMED_OUT = re.compile(r"timed out|timeout", re.IGNORECASE)
_CONNECTING = re.compile(r"timed out connecting|trying to connect|refused", re.IGNORECASE)
_ROLL_CALL = 3.0  # seconds for the ranks that did come to say so: they time out together


class HungRank(Exception):  # noqa: N818 - the failure of a worker, not a user's error
    """Ranks that did not come to an exchange between all of them in time."""

    def __init__(self, ranks: tuple[int, ...], seconds: float) -> None:
        super().__init__(ranks, seconds)
        self.ranks = ranks
        self.seconds = seconds

    def __str__(self) -> str:
        """Name the ranks and the key to raise if they were only slow."""
        waited = f"waited {self.seconds:g} s for the other workers"
        if not self.ranks:
            return (
                f"{waited}, which all wait, too: they are at different exchanges, as where a model "
                "leaves layers out of a pass on some of them. Add 0 times the outputs of those "
                "layers, or set distributed.strategy=local_sgd"
            )
        names = ", ".join(map(str, self.ranks))
        return (
            f"{waited}; missing: rank {names}. If they "
            f"were only slow, raise distributed.collective_timeout={self.seconds:g}"
        )


def timed_out(error: RuntimeError, waited: float, timeout: float) -> bool:
    """Return whether a collective failed because a rank did not come in time.

    `waited` are the seconds that this rank can have waited at most. Peers that nobody listens for
    any more are told of in the same words, but at once.
    """
    says_so = _TIMED_OUT.search(str(error)) is not None
    return says_so and not unreachable(error) and waited >= 0.9 * timeout


def unreachable(error: RuntimeError) -> bool:
    """Return whether a rank could not be connected to, such as one that has died."""
    return _CONNECTING.search(str(error)) is not None


def missing_ranks(store: Store, topology: Topology) -> tuple[int, ...]:
    """Call the roll in `store`; return who does not answer. Each rank that came must call it.

    The store lives in the process of rank 0, or of torchrun's agent. If it does not answer
    either, rank 0 is the one that is missing.
    """
    answers = in_background(lambda: _roll_call(store, topology))
    try:
        return answers.result(timeout=2 * _ROLL_CALL)
    except Exception:  # noqa: BLE001 - whatever is wrong with the store
        return (0,)


def _roll_call(store: Store, topology: Topology) -> tuple[int, ...]:
    store.set_timeout(timedelta(seconds=_ROLL_CALL))
    store.set(f"came/{topology.rank}", "1")
    deadline = time.monotonic() + _ROLL_CALL
    missing = list(range(topology.world_size))
    while missing and time.monotonic() < deadline:
        missing = [rank for rank in missing if not store.check([f"came/{rank}"])]
        time.sleep(0.05)
    return tuple(missing)
