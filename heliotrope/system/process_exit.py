"""Ending a process: in order, or at once with its last words said and its children ended.

Taking torch apart, module by module, would take Python a second; taking Ray apart in the middle
of its start ends in an abort.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from heliotrope.system.processes import children, end
from heliotrope.system.signals import STOP_CODES, STOPPING, code_of, held_back

__all__ = ["as_process", "brief", "leave", "leave_at_once", "saying", "stoppable"]

_LISTEN_SECONDS = 0.1  # between two looks whether there is anything to listen for
_TEARDOWN_SECONDS = 1.0  # that may pass, after a signal, before what is left is killed

_last_words: list[Callable[[], None]] = []
_leaving = threading.Lock()


def as_process(main: Callable[[], int]) -> NoReturn:
    """Be the process of `main`: run it, and end with its exit code once exit handlers have run.

    After SIGINT or SIGTERM, which `main` may raise or return the code of, it ends without them,
    and so do its children.
    """
    codes: list[int] = []
    atexit.register(lambda: leave(codes[0]) if codes else None)  # the first of them runs last
    try:
        code = main()
    except (KeyboardInterrupt, SystemExit) as error:
        stopped = code_of(error)
        if stopped is None:
            raise
        code = stopped
    if code in STOP_CODES:
        _flushed()
        _end_children()
        os._exit(code)
    codes.append(code)
    sys.exit(code)


def leave(code: int) -> NoReturn:
    """End this process now, with all that was logged and printed written."""
    os._exit(code if _flushed() else code or 1)


def _flushed() -> bool:
    """Write what was logged and printed; return whether somebody reads it."""
    logging.shutdown()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return False
    return True


@contextmanager
def saying(words: Callable[[], None]) -> Iterator[None]:
    """Say `words` if the process is ended at once inside the block."""
    _last_words.append(words)
    try:
        yield
    finally:
        _last_words.remove(words)


def leave_at_once(code: int) -> NoReturn:
    """End this process and its children now, from any thread, whatever they are doing."""
    if not _leaving.acquire(blocking=False):
        while True:  # another thread is at it
            time.sleep(1.0)
    for words in reversed(_last_words):
        words()
    if code == 128 + signal.SIGINT:
        sys.stderr.write("interrupted\n")
    _flushed()
    _end_children()
    os._exit(code)


def _end_children() -> None:
    """End this process's children just before itself: a thread that misses them has no say."""
    threading.excepthook = lambda _: None  # such as one of Ray's, which would print a traceback
    end(children())


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGINT and SIGTERM end this process at once inside the block.

    No thread but one hears them: not Ray's code, which would end the process in its own way, and
    none that is started in the block. Processes that are started in it inherit that they do not
    hear them, so that a signal to all of them is this one's to answer. Nothing may be in the
    block that would have to be saved.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "sigtimedwait"):  # such as on macOS
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    heard = [number for number, handler in handlers.items() if handler is not signal.SIG_IGN]
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            came = signal.sigtimedwait(heard, _LISTEN_SECONDS)
            # Interrupted as the time is over, CPython gives a number that means nothing.
            if came is not None and came.si_signo in heard:
                leave_at_once(128 + came.si_signo)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    listener = threading.Thread(target=listen, daemon=True, name="signals")
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()
        for number in heard:  # `ray.init` has put in its own
            signal.signal(number, handlers[number])
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def brief() -> Iterator[None]:
    """Take something apart that a signal must not interrupt.

    If a signal is why, and it takes longer than a second, the process ends without it: what it
    talks to may have had the same signal, and be gone.
    """
    code = code_of(sys.exception())
    timer = threading.Timer(_TEARDOWN_SECONDS, leave_at_once, [code])
    timer.daemon = True
    if code is not None:
        timer.start()
    try:
        with held_back():
            yield
    finally:
        timer.cancel()
