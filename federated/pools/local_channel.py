"""A short way between the driver and the workers of one machine: a socket and shared memory.

A call to a Ray actor takes a millisecond or two, and more beside other processes; arrays go
through the object store, into new memory each time. A worker on the driver's machine instead
spends its life in one call, `serve`, and takes its orders from a socket. Arrays lie in memory that
both have mapped and that is used again each round: one file for what the driver sends, the same
for all workers, and one for the answers of each.

The socket has an abstract name (unix(7)), which leaves nothing behind, and takes only processes
of this user that know a token. It ends with either side, so that a death shows at once.
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import secrets
import select
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

__all__ = ["Channel", "LocalChannels", "serve"]

_log = logging.getLogger(__name__)

_ALIGNMENT = 64  # bytes: of a cache line
_TOKEN = 32  # bytes
_LOOK_SECONDS = 0.01  # between looks at whether a worker is on another machine, or died


class _Arena:
    """Memory that processes share: one of them writes, all at once, and the others read."""

    def __init__(self, file: int | None = None) -> None:
        self.file = os.memfd_create("heliotrope") if file is None else file
        self._map: mmap.mmap | None = None

    def write(self, buffers: Sequence[memoryview]) -> list[tuple[int, int]]:
        """Overwrite all with `buffers`; return offset and length of each."""
        extents, end = [], 0
        for buffer in buffers:
            extents.append((end, buffer.nbytes))
            end += -(-buffer.nbytes // _ALIGNMENT) * _ALIGNMENT
        if end > os.fstat(self.file).st_size:
            os.ftruncate(self.file, end)
        for (offset, length), buffer in zip(extents, buffers, strict=True):
            if length:
                self._mapped(end)[offset : offset + length] = buffer
        return extents

    def read(self, extents: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return what was written last, in place: it changes with the next write."""
        end = max((offset + length for offset, length in extents), default=0)
        if end == 0:
            return [memoryview(b"")] * len(extents)
        whole = memoryview(self._mapped(end)).toreadonly()
        return [whole[offset : offset + length] for offset, length in extents]

    def _mapped(self, size: int) -> mmap.mmap:
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self.file, os.fstat(self.file).st_size)
        return self._map

    def close(self) -> None:
        self._map = None  # the memory itself lives as long as someone looks at it
        os.close(self.file)


_Packed = tuple[bytes, list[tuple[int, int]]]
"""An object whose arrays lie in an arena: its pickle, and where they are."""


def _pack(value: object, arena: _Arena) -> _Packed:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return data, arena.write([buffer.raw() for buffer in buffers])


def _unpack(packed: _Packed, arena: _Arena, *, copy: bool) -> Any:
    data, extents = packed
    found = arena.read(extents)
    return pickle.loads(data, buffers=[bytearray(b) for b in found] if copy else found)  # noqa: S301


class Channel:
    """The driver's end of the connection to one worker."""

    def __init__(self, connected: socket.socket, shared: _Arena, serving: Any) -> None:
        self.serving = serving  # what `start` returned
        self._answers = _Arena()
        socket.send_fds(connected, [b"."], [shared.file, self._answers.file])
        self.connection = Connection(connected.detach())
        self._number = 0

    def ask(self, method: str, hung: object, weights: _Packed | None, arguments: Any) -> None:
        """Send an order; if the worker is gone, `answer` says so."""
        self._number += 1
        order = pickle.dumps((self._number, method, hung, weights, arguments), protocol=5)
        with suppress(OSError):
            self.connection.send_bytes(order)

    def answer(self) -> tuple[bool, Any]:
        """Return whether the last order was carried out, and the answer or how it failed.

        Answers to earlier orders, of a round that was cut off, are passed over. Raises `EOFError`
        or `OSError` if the worker is gone.
        """
        while True:
            number, done, packed = pickle.loads(self.connection.recv_bytes())  # noqa: S301
            if number == self._number:
                return done, _unpack(packed, self._answers, copy=True)

    def close(self) -> None:
        """Close the connection: the worker's call of `serve` ends."""
        self.connection.close()
        self._answers.close()


class LocalChannels:
    """Channels to those workers that are on this machine, by number."""

    def __init__(self) -> None:
        self.channels: dict[int, Channel] = {}
        self._elsewhere: set[int] = set()
        self._shared: _Arena | None = None
        if sys.platform != "linux":
            return
        self._address = f"\0heliotrope-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(self._address)
            self._listener.listen()
            self._shared = _Arena()
        except OSError as error:  # a sandbox may allow neither
            _log.info("workers on this machine are called by Ray: %s", error)
            self._listener.close()

    def connect(
        self, worker: int, start: Callable[[str, bytes], Any], is_over: Callable[[Any], bool]
    ) -> None:
        """Connect to a worker that is idle, if it is on this machine and there is no channel yet.

        `start` makes its process call `serve` with these arguments, and returns something by
        which `is_over` tells whether that call has returned or failed.
        """
        if self._shared is None or worker in self.channels or worker in self._elsewhere:
            return
        token = secrets.token_bytes(_TOKEN)
        serving = start(self._address, token)
        while True:
            if select.select([self._listener], [], [], _LOOK_SECONDS)[0]:
                connected, _ = self._listener.accept()
                if _is_ours(connected, token):
                    self.channels[worker] = Channel(connected, self._shared, serving)
                    return
                connected.close()
            elif is_over(serving):
                self._elsewhere.add(worker)
                return

    def share(self, weights: object) -> _Packed | None:
        """Put what every worker is to read where those on this machine find it."""
        if self._shared is None or not self.channels:
            return None
        return _pack(weights, self._shared)

    def answered(self, workers: Collection[int], seconds: float | None) -> list[int]:
        """Return those of `workers` that have answered or are gone, after at most `seconds`.

        Empty if there is none by then; those without a channel are never returned.
        """
        waiting = {self.channels[w].connection: w for w in workers if w in self.channels}
        return [waiting[connection] for connection in wait(list(waiting), seconds)]  # type: ignore[index]

    def forget(self, worker: int) -> None:
        """Close the channel to a worker: another takes its place, perhaps elsewhere."""
        channel = self.channels.pop(worker, None)
        if channel is not None:
            channel.close()
        self._elsewhere.discard(worker)

    def close(self) -> None:
        """Forget all workers, and give the shared memory back."""
        for worker in list(self.channels):
            self.forget(worker)
        if self._shared is not None:
            self._listener.close()
            self._shared.close()
            self._shared = None


def _is_ours(connected: socket.socket, token: bytes) -> bool:
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, user, _ = struct.unpack("3i", credentials)
    if user != os.getuid():
        return False
    given = connected.recv(_TOKEN, socket.MSG_WAITALL)
    return secrets.compare_digest(given, token)


def serve(do: Callable[..., Any], address: str, token: bytes) -> None:
    """Carry out the orders of the driver at `address`, until it is gone.

    Returns at once if it is on another machine.
    """
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.connect(address)
        connected.sendall(token)
        _, files, _, _ = socket.recv_fds(connected, 1, 2)
    except OSError:
        files = []
    if len(files) != 2:
        connected.close()
        return
    orders, answers = map(_Arena, files)
    with Connection(connected.detach()) as connection:
        try:
            while True:
                number, method, hung, weights, arguments = pickle.loads(  # noqa: S301
                    connection.recv_bytes()
                )
                if weights is not None:
                    arguments = (_unpack(weights, orders, copy=False), *arguments)
                try:
                    done, packed = True, _pack(do(method, hung, *arguments), answers)
                except Exception:  # noqa: BLE001 - the driver says what it means
                    done, packed = False, _pack(traceback.format_exc(), answers)
                connection.send_bytes(pickle.dumps((number, done, packed), protocol=5))
        except (EOFError, ConnectionError):
            return
        finally:
            orders.close()
            answers.close()
