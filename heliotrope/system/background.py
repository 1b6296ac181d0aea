"""Work done beside the main thread, which alone may start Ray and hears signals."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["in_background"]

_Result = TypeVar("_Result")

_GENTLY = 10  # niceness, of 19


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
