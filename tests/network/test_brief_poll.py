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
from nwebsocket._network import brief_poll as brief_poll_module
from nwebsocket._network.brief_poll import BriefPoll
from nwebsocket._threads.safe_curio import Descriptor, Kernel, epoll_descriptor, sleep, spawn, wait_readable

pytestmark = pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="there is epoll only on Linux")


def run(main: Callable[[], Coroutine[Any, Any, None]], selector: selectors.BaseSelector | None = None) -> None:
    with Kernel(selector=selector) as kernel:
        kernel.run(main)


async def polling(sock: socket.socket) -> BriefPoll:
    epoll = await epoll_descriptor()
    assert epoll is not None
    return BriefPoll(sock.fileno(), epoll)


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
    """Every wait polls, and far longer than any of these tests may take."""
    monkeypatch.setattr(brief_poll_module, "_QUICK", float("inf"))
    monkeypatch.setattr(brief_poll_module, "_STAY", float("inf"))
    monkeypatch.setattr(brief_poll_module, "_MOMENT", 10_000 * LIMIT)


def test_a_wait_long_after_the_last_one_does_not_poll(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brief_poll_module, "_QUICK", 0.0)

    async def main() -> None:
        poll = await polling(pairs[0][0])
        assert not poll.wait()
        assert not poll.wait()

    run(main)


def test_data_is_found(pairs: list[Pair]) -> None:
    (ours, theirs), _ = pairs

    async def main() -> None:
        poll = await polling(ours)
        threading.Timer(0.05, theirs.send, (b"a",)).start()
        assert poll.wait()
        assert ours.recv(10) == b"a"
        theirs.close()
        assert poll.wait()
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
        poll = await polling(ours)
        threading.Timer(0.05, far.send, (b"a",)).start()
        assert not poll.wait()
        happened.append("not polling any more")
        for _ in range(brief_poll_module._OTHERS_TURN):
            assert not poll.wait()
        await task.join()
        theirs.send(b"a")
        assert poll.wait()

    run(main)
    assert happened == ["not polling any more", "another"]


def test_the_kernel_runs_now_and_then(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brief_poll_module, "_STAY", 0.01)
    (ours, theirs), _ = pairs
    theirs.send(b"a")

    async def main() -> None:
        poll = await polling(ours)
        assert not poll.wait()
        assert poll.wait()
        deadline = time.monotonic() + LIMIT
        while poll.wait():
            assert time.monotonic() < deadline

    run(main)


@pytest.mark.skipif(not brief_poll_module.AVAILABLE, reason="it is switched off")
def test_handlers_on_the_loop_of_the_library_poll_briefly(echo: str) -> None:
    """As said there, its kernel has a selector of its own kind."""
    polling = []

    class Answering(WebSocket):
        def onmessage(self, message: str) -> None:
            polling.append(self._nwebsocket.session._transport._brief_poll)

    with Answering(echo, callbacks="loop") as ws:
        ws.send("?")
        until(lambda: polling, "no answer has come")
    assert isinstance(polling[0], BriefPoll)


def test_a_kernel_without_epoll_is_left_alone() -> None:
    async def main() -> None:
        assert await epoll_descriptor() is None

    run(main, selectors.PollSelector())
