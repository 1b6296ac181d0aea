"""Work done beside the main thread, which alone may start Ray and hears signals."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["in_background", "read_ahead"]

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")

_GENTLY = 10  # niceness, of 19
_LOOK_SECONDS = 0.1  # between two looks of a thread whether it is still needed


def in_background(work: Callable[[], _Result], *, gently: bool = False) -> Future[_Result]:
    """Do `work` in a thread that does not keep an interrupted process alive.

    `gently` leaves the CPUs to others who want them, where threads have a niceness: on Linux.
    """
    future: Future[_Result] = Future()

    def do() -> None:
        if gently and sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _GENTLY)
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by future.result()
            future.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return future


def read_ahead(items: Iterator[_Item], most: int = 2) -> Iterator[_Item]:
    """Yield `items`, of which a thread makes up to `most` before they are asked for.

    What they raise is raised here, in its turn. The thread ends with the items, or when this
    iterator is closed.
    """
    made: queue.Queue[tuple[_Item] | BaseException | None] = queue.Queue(most)
    closed = threading.Event()

    def put(found: tuple[_Item] | BaseException | None) -> None:
        while not closed.is_set():
            try:
                made.put(found, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put((item,))
                if closed.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised where the items are asked for
            put(error)

    threading.Thread(target=make, daemon=True).start()
    try:
        while (found := made.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found[0]
    finally:
        closed.set()
