"""Waiting for a socket outside of the kernel: it finds data, and never keeps anybody else waiting."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from peers import LIMIT
from until import until

from nwebsocket import WebSocket
from nwebsocket._network import linger as linger_module
from nwebsocket._network.linger import Linger
from nwebsocket._threads.safe_curio import Descriptor, Kernel, epoll_descriptor, sleep, spawn, wait_readable

pytestmark = pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="lingers with epoll only")


def run(main: Callable[[], Coroutine[Any, Any, None]], selector: selectors.BaseSelector | None = None) -> None:
    with Kernel(selector=selector) as kernel:
        kernel.run(main)


async def lingering(sock: socket.socket) -> Linger:
    epoll = await epoll_descriptor()
    assert epoll is not None
    return Linger(sock.fileno(), epoll)


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    pairs = [socket.socketpair(), socket.socketpair()]
    yield pairs
    for pair in pairs:
        for sock in pair:
            sock.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait lingers, and far longer than any of these tests may take."""
    monkeypatch.setattr(linger_module, "_QUICK", float("inf"))
    monkeypatch.setattr(linger_module, "_STAY", float("inf"))
    monkeypatch.setattr(linger_module, "_MOMENT", 10_000 * LIMIT)


def test_a_wait_long_after_the_last_one_does_not_linger(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger_module, "_QUICK", 0.0)

    async def main() -> None:
        linger = await lingering(pairs[0][0])
        assert not linger.wait()
        assert not linger.wait()

    run(main)


def test_data_is_found(pairs: list[Pair]) -> None:
    (ours, theirs), _ = pairs

    async def main() -> None:
        linger = await lingering(ours)
        threading.Timer(0.05, theirs.send, (b"a",)).start()
        assert linger.wait()
        assert ours.recv(10) == b"a"
        theirs.close()
        assert linger.wait()
        assert ours.recv(10) == b""

    run(main)


def test_another_task_gets_its_turn_as_soon_as_its_socket_has_data(pairs: list[Pair]) -> None:
    (ours, theirs), (another, far) = pairs
    happened: list[str] = []

    async def wait_for_another() -> None:
        await wait_readable(Descriptor(another.fileno()))
        happened.append("another")

    async def main() -> None:
        task = await spawn(wait_for_another)
        await sleep(0)
        linger = await lingering(ours)
        threading.Timer(0.05, far.send, (b"a",)).start()
        assert not linger.wait()
        happened.append("not lingering any more")
        for _ in range(linger_module._OTHERS_TURN):
            assert not linger.wait()
        await task.join()
        theirs.send(b"a")
        assert linger.wait()

    run(main)
    assert happened == ["not lingering any more", "another"]


def test_the_kernel_runs_now_and_then(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger_module, "_STAY", 0.01)
    (ours, theirs), _ = pairs
    theirs.send(b"a")

    async def main() -> None:
        linger = await lingering(ours)
        assert not linger.wait()
        assert linger.wait()
        deadline = time.monotonic() + LIMIT
        while linger.wait():
            assert time.monotonic() < deadline

    run(main)


def test_handlers_on_the_loop_of_the_library_linger(echo: str) -> None:
    """As said there, its kernel has a selector of its own kind."""
    lingering = []

    class Answering(WebSocket):
        def onmessage(self, message: str) -> None:
            lingering.append(self._nwebsocket.session._transport._linger)

    with Answering(echo, callbacks="loop") as ws:
        ws.send("?")
        until(lambda: lingering, "no answer has come")
    assert isinstance(lingering[0], Linger)


def test_a_kernel_without_epoll_is_left_alone() -> None:
    async def main() -> None:
        assert await epoll_descriptor() is None

    run(main, selectors.PollSelector())
