"""How processes that torchrun started find each other, through a store that outlives them.

torchrun's agent keeps the store while it starts failed workers again (`--max-restarts`), and what
the dead have written is still in it. Processes therefore agree on who is there before they use
it for anything else, and what they then write goes under a name that is theirs alone. All that
passes is JSON: nothing that comes from the network is unpickled.
"""

from __future__ import annotations

import functools
import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from heliotrope.runs.stamp import new_stamp

from ..communication.hung import HungRank
from ..topology import Topology

__all__ = ["Rendezvous", "agreed_stamp", "torchrun_store"]

_PREFIX = "heliotrope"
_LOOK = 0.02  # seconds between two looks for what others write
_QUIET = 10.0  # seconds of waiting before it is said for whom


@functools.cache
def torchrun_store() -> Store:
    """Return our part of the store that torchrun's environment variables name, connected once."""
    return PrefixStore(_PREFIX, next(rendezvous("env://"))[0])


def agreed_stamp() -> str:
    """Return the stamp of a generated directory: the same for all ranks, and after a restart."""
    agreed: bytes = torchrun_store().compare_set("stamp", "", new_stamp())
    return agreed.decode()


class Rendezvous:
    """The processes of this attempt, one for each rank.

    Waiting ends by `HungRank` after `timeout` seconds; `say` is told for whom it is, if they do
    not come at once. Once they have met, what is written to `store` belongs to this attempt alone.
    """

    def __init__(
        self, store: Store, topology: Topology, timeout: float, say: Callable[[str], None]
    ) -> None:
        self._store = store
        self._topology = topology
        self._timeout = timeout
        self._say = say
        self.store: Store = store

    def meet(self, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Find the other processes; return what each rank says about itself, in order.

        1. Each process writes what it says, with a word of its own that no other ever had.
        2. Rank 0 calls the roll: it writes down the words of all ranks.
        3. A process that finds its own word on the roll answers, under the roll's name.
        4. When all have answered, rank 0 closes the roll. Should another process have come in the
           place of one that died meanwhile, rank 0 calls a new one.
        """
        word = uuid.uuid4().hex
        mine = json.dumps({"word": word, "about": dict(about)})
        self._store.set(f"here/{self._topology.rank}", mine)
        roll = self._call_roll() if self._topology.rank == 0 else self._answer_roll(word)
        self.store = PrefixStore(roll["name"], self._store)
        return [each["about"] for each in roll["here"]]

    def _call_roll(self) -> dict[str, Any]:
        ranks = range(self._topology.world_size)
        keys = [f"here/{rank}" for rank in ranks]
        roll: dict[str, Any] = {}

        def closed() -> tuple[int, ...]:
            """Return the ranks that have not answered yet."""
            missing = tuple(rank for rank, key in enumerate(keys) if not self._store.check([key]))
            if missing:
                return missing
            here = [json.loads(self._store.get(key)) for key in keys]
            if here != roll.get("here"):
                roll.update(name=uuid.uuid4().hex, here=here)
                self._store.set("roll", json.dumps(roll))
            answers = f"{roll['name']}/answer"
            return tuple(r for r in ranks if r and not self._store.check([f"{answers}/{r}"]))

        self._wait(closed)
        self._store.set(f"{roll['name']}/closed", "1")
        return roll

    def _answer_roll(self, word: str) -> dict[str, Any]:
        rank = self._topology.rank
        roll: dict[str, Any] = {}

        def closed() -> tuple[int, ...]:
            if not self._store.check(["roll"]):
                return (0,)
            roll.update(json.loads(self._store.get("roll")))
            here = roll["here"]
            if rank >= len(here) or here[rank]["word"] != word:  # of an earlier attempt
                return (0,)
            self._store.set(f"{roll['name']}/answer/{rank}", "1")
            if self._store.check([f"{roll['name']}/closed"]):
                return ()
            others = range(1, len(here))
            missing = [r for r in others if not self._store.check([f"{roll['name']}/answer/{r}"])]
            return tuple(missing) or (0,)

        self._wait(closed)
        return roll

    def announce(self, value: Any) -> None:
        """Let all ranks know `value`, as JSON has it."""
        self.store.set("announced", json.dumps(value))

    def announced(self) -> Any:
        """Return what rank 0 tells, once it does."""
        self._wait(lambda: () if self.store.check(["announced"]) else (0,))
        return json.loads(self.store.get("announced"))

    def _wait(self, missing: Callable[[], tuple[int, ...]]) -> None:
        """Return once no rank is missing."""
        began, said = time.monotonic(), False
        while ranks := missing():
            waited = time.monotonic() - began
            if waited > self._timeout:
                raise HungRank(ranks, self._timeout)
            if waited > _QUIET and not said:
                said = True
                self._say(f"waiting for rank {', '.join(map(str, ranks))} to come")
            time.sleep(_LOOK)
