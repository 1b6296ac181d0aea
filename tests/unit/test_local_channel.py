"""Orders and answers over a socket and shared memory."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from federated.pools.local_channel import Channel, LocalChannels, serve

pytestmark = pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="needs Linux")


def _do(method: str, hung: object, *arguments: Any) -> Any:
    if method == "fail":
        raise RuntimeError("disk on fire")
    if method == "unsendable":
        return lambda: None
    if method == "copy":
        return {name: value.copy() for name, value in arguments[0].items()}, arguments[1]
    if method == "sleep":
        time.sleep(arguments[-1])
    return method, hung, arguments


@pytest.fixture
def local() -> Iterator[LocalChannels]:
    local = LocalChannels()
    yield local
    local.close()


def _start(local: LocalChannels, worker: int, do: Callable[..., Any] = _do) -> threading.Thread:
    """Connect to a worker that is a thread."""

    def start(address: str, token: bytes) -> threading.Thread:
        thread = threading.Thread(target=serve, args=(do, address, token), daemon=True)
        thread.start()
        return thread

    local.connect(worker, start, lambda thread: not thread.is_alive())
    thread: threading.Thread = local.channels[worker].serving
    return thread


def _ask(channel: Channel, method: str, weights: Any, *arguments: Any) -> tuple[bool, Any]:
    channel.ask(method, {}, weights, arguments)
    return channel.answer()


def test_arrays_arrive_whole_and_are_the_drivers_own(local: LocalChannels) -> None:
    for worker in (0, 1):
        _start(local, worker)
    generator = np.random.default_rng(0)
    before: list[tuple[np.ndarray, np.ndarray]] = []
    for count in (3, 0, 100_000, 7, 300_000):  # the memory grows, and is used again
        weights = {
            "a": generator.random(count),
            "b": np.asfortranarray(generator.random((3, 5))),
            "c": generator.integers(0, 9, (2, 2))[:, ::2],
        }
        packed = local.share(weights)
        for channel in local.channels.values():
            done, (found, number) = _ask(channel, "copy", packed, 4)
            assert (done, number) == (True, 4)
            for name, value in weights.items():
                assert (found[name] == value).all()
                assert found[name].dtype == value.dtype
            before.append((found["a"], weights["a"]))
            found["b"] += 1  # nobody else reads it
    for found, sent in before:  # later answers do not overwrite it
        assert (found == sent).all()


@pytest.mark.parametrize(("method", "says"), [("fail", "disk on fire"), ("unsendable", "pickle")])
def test_an_order_that_fails_says_why_and_the_next_is_carried_out(
    method: str, says: str, local: LocalChannels
) -> None:
    _start(local, 0)
    done, trace = _ask(local.channels[0], method, None)
    assert not done
    assert says in trace
    assert _ask(local.channels[0], "echo", None, 1) == (True, ("echo", {}, (1,)))


def test_an_answer_to_a_round_that_was_cut_off_is_passed_over(local: LocalChannels) -> None:
    _start(local, 0)
    local.channels[0].ask("first", {}, None, ())
    assert _ask(local.channels[0], "second", None) == (True, ("second", {}, ()))


def test_who_has_answered_is_known_and_silence_ends(local: LocalChannels) -> None:
    for worker in (0, 1):
        _start(local, worker)
    assert local.answered([0, 1], 0) == []
    local.channels[0].ask("sleep", {}, None, (0.5,))
    local.channels[1].ask("echo", {}, None, ())
    assert local.answered([0, 1], 10) == [1]
    assert local.channels[1].answer()[0]
    assert local.answered([0, 1], 0.01) == []
    assert local.answered([0, 1], 10) == [0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_ends_is_noticed_at_once_and_replaced(local: LocalChannels) -> None:
    def die(*_: object) -> None:
        raise SystemExit

    thread = _start(local, 0, die)
    local.channels[0].ask("echo", {}, None, ())
    assert local.answered([0], 10) == [0]
    with pytest.raises((EOFError, OSError)):
        local.channels[0].answer()
    thread.join()
    local.forget(0)
    _start(local, 0)
    assert _ask(local.channels[0], "echo", None)[0]


def test_workers_end_with_the_driver() -> None:
    local = LocalChannels()
    thread = _start(local, 0)
    local.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_worker_on_another_machine_has_no_channel(local: LocalChannels) -> None:
    def start(address: str, token: bytes) -> None:
        serve(_do, f"{address} elsewhere", token)  # nobody listens there: it returns

    local.connect(0, start, lambda _: True)
    assert local.channels == {}
    assert local.share({"a": np.zeros(3)}) is None
    assert local.answered([0], 0) == []


def test_a_system_without_shared_memory_files_has_no_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: str) -> int:
        raise OSError("not permitted")

    monkeypatch.setattr("os.memfd_create", refused)
    local = LocalChannels()
    local.connect(0, lambda *_: pytest.fail("nobody listens"), lambda _: True)
    assert local.channels == {}
    assert local.share({"a": np.zeros(3)}) is None
    local.close()


def test_a_stranger_without_the_token_is_turned_away(local: LocalChannels) -> None:
    def start(address: str, token: bytes) -> threading.Thread:
        serve_stranger = threading.Thread(target=serve, args=(_do, address, b"?" * 32))
        serve_stranger.start()
        serve_stranger.join(5)
        return serve_stranger

    local.connect(0, start, lambda thread: not thread.is_alive())
    assert local.channels == {}
