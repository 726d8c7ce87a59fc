"""The last messages of a burst: written by the thread that comes to recv(), and by somebody in time if it does not."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from alarms import Barrage, alarm, no_collection
from peers import CLOSE, LIMIT, PING, Peer, RawServer, close_frame, pong, text
from until import until

from nwebsocket import WaitTimeout, WebSocket, connect
from nwebsocket._connection import burst_end as burst_end_module
from nwebsocket._connection import sender as sender_module
from nwebsocket._connection.lent_sockets import AVAILABLE, LentSockets
from nwebsocket._connection.reader import Reader
from nwebsocket._protocol.fast_lane import ENABLED

pytestmark = pytest.mark.skipif(
    not (ENABLED and AVAILABLE and burst_end_module.AVAILABLE),
    reason="recv() reads the socket only with the fast lane, and where there is epoll",
)


class Echo:
    """A server's script that sends back what comes, but for what begins with "-"."""

    def __init__(self) -> None:
        self._got: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, peer: Peer) -> None:
        peer.accept()
        while (frame := peer.read_frame()).opcode != CLOSE:
            if frame.opcode == PING:
                peer.send(pong(frame.payload))
                continue
            message = frame.payload.decode()
            with self._changed:
                self._got.append(message)
                self._changed.notify_all()
            if not message.startswith("-"):
                peer.send(text(message))
        peer.send(close_frame(1000))

    def has_got(self, *messages: str) -> None:
        """Wait until these are the last that came."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._got[-len(messages) :] == list(messages), LIMIT), self._got[-9:]

    def got(self, beginning: str) -> list[str]:
        return [message for message in self._got if message.startswith(beginning)]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def ws(echo: Echo) -> Iterator[WebSocket]:
    with RawServer(echo) as server, connect(server.url, compression=None) as ws:
        yield ws


@pytest.fixture
def posts(ws: WebSocket, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each flush that a sender asks the loop for."""
    posts: list[int] = []
    sender = ws._nwebsocket.bridge.sender
    post = sender._post_flush

    def counted() -> None:
        posts.append(1)
        post()

    monkeypatch.setattr(sender, "_post_flush", counted)
    return posts


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who comes at all is late, and no message comes after a pause, however busy the machine is."""
    monkeypatch.setattr(burst_end_module, "_MOMENT", LIMIT)
    monkeypatch.setattr(burst_end_module, "_LATE", LIMIT)
    monkeypatch.setattr(sender_module, "_PAUSE", LIMIT)


async def _nothing(*_: object) -> None:
    pass


@pytest.fixture
def long_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop does not take the socket back by itself."""
    monkeypatch.setattr(LentSockets, "_look_where_something_waits", _nothing)
    monkeypatch.setattr(LentSockets, "_look_at_all", _nothing)


@pytest.fixture
def no_look(long_lease: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer does not look at tails either."""
    monkeypatch.setattr(Reader, "write_burst_end", lambda _: None)


def burst(ws: WebSocket, messages: int = 5) -> None:
    for number in range(messages):
        ws.send(str(number))
    assert [ws.recv(LIMIT) for _ in range(messages)] == list(map(str, range(messages)))


def earn_trust(ws: WebSocket) -> None:
    """Come in time until the next tail is left to this thread, and the loop has nothing more to do."""
    bridge, deadline = ws._nwebsocket.bridge, time.monotonic() + LIMIT
    while not (bridge.sender._burst_end.trusts() and bridge.reader is not None and bridge.reader.lent):
        assert time.monotonic() < deadline
        burst(ws)
        wait_for_the_loop(ws)


def wait_for_the_loop(ws: WebSocket) -> None:
    """Return when all that was posted so far has been done."""
    done = threading.Event()

    async def command() -> None:
        done.set()

    ws._nwebsocket.bridge.post(command)
    assert done.wait(LIMIT)


@pytest.mark.usefixtures("unhurried", "no_look")
def test_who_comes_in_time_writes_all_of_it(ws: WebSocket, posts: list[int]) -> None:
    earn_trust(ws)
    posts.clear()
    for messages in (2, 3, 40, 1000, 2, 600):
        burst(ws, messages)
    assert posts == []


@pytest.mark.usefixtures("unhurried", "no_look")
def test_a_long_burst_is_written_in_pieces_before_its_end(ws: WebSocket, echo: Echo) -> None:
    earn_trust(ws)
    messages = [f"-{number}" for number in range(1 + 32 + 64 + 5)]
    for message in messages:
        ws.send(message)
    echo.has_got(*messages[:-5])
    assert ws.bufferedAmount == len("".join(messages[-5:]))
    with pytest.raises(WaitTimeout):
        ws.recv(0)
    echo.has_got(*messages)


@pytest.mark.usefixtures("unhurried", "long_lease")
def test_who_does_not_come_is_not_waited_for(ws: WebSocket, echo: Echo, posts: list[int]) -> None:
    earn_trust(ws)
    posts.clear()
    for message in ("-a", "-b", "-c"):
        ws.send(message)
    echo.has_got("-a", "-b", "-c")
    assert posts == []


@pytest.mark.usefixtures("unhurried", "long_lease")
def test_and_is_not_trusted_the_next_time(
    ws: WebSocket, echo: Echo, posts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    earn_trust(ws)
    monkeypatch.setattr(burst_end_module, "_LATE", -1.0)
    ws.send("-a")
    ws.send("-b")
    echo.has_got("-a", "-b")
    assert not ws._nwebsocket.bridge.sender._burst_end.trusts()
    posts.clear()
    burst(ws)
    assert posts


def test_who_comes_late_is_not_trusted(ws: WebSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burst_end_module, "_MOMENT", -1.0)
    for _ in range(20):
        burst(ws)
    assert not ws._nwebsocket.bridge.sender._burst_end.trusts()


@pytest.mark.usefixtures("unhurried", "no_look")
def test_another_thread_is_not_trusted(ws: WebSocket, echo: Echo, posts: list[int]) -> None:
    """Also while the one that is sits in recv(), with nothing left to write."""
    earn_trust(ws)
    burst(ws)
    posts.clear()

    def send() -> None:
        for number in range(5):
            ws.send(f"-{number}")

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(WaitTimeout):
        ws.recv(0.2)
    sender.join()
    echo.has_got(*(f"-{number}" for number in range(5)))
    assert posts


@pytest.mark.usefixtures("unhurried", "no_look")
@pytest.mark.parametrize(
    "wait",
    [WebSocket.close, lambda ws: ws.ping(LIMIT), lambda ws: ws.wait_open(LIMIT), lambda ws: ws.recv(LIMIT)],
    ids=["close", "ping", "wait_open", "recv"],
)
def test_whatever_the_sender_waits_for(ws: WebSocket, echo: Echo, wait: Callable[[WebSocket], object]) -> None:
    earn_trust(ws)
    ws.send("echo")
    ws.send("-a")
    ws.send("-b")
    wait(ws)
    echo.has_got("echo", "-a", "-b")


@pytest.mark.usefixtures("unhurried", "long_lease")
def test_the_loop_has_the_socket_back_before_it_knows_of_the_tail(
    ws: WebSocket, echo: Echo, posts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer has then looked for the last time."""
    watch_burst_end = Reader.watch_burst_end

    def too_late(reader: Reader) -> None:
        ws._nwebsocket.bridge.post(reader.want_back)
        until(lambda: not reader.lent and not reader._lent_sockets._runs)
        watch_burst_end(reader)

    earn_trust(ws)
    monkeypatch.setattr(Reader, "watch_burst_end", too_late)
    posts.clear()
    ws.send("-a")
    ws.send("-b")
    echo.has_got("-a", "-b")
    assert posts


@pytest.mark.usefixtures("unhurried", "long_lease")
def test_a_fault_in_one_connection_is_none_of_the_others(
    ws: WebSocket, echo: Echo, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer that looks at all of them ended with it."""
    failed = threading.Event()

    async def fail() -> None:
        failed.set()
        raise RuntimeError("a fault of ours")

    with connect(ws.url, compression=None) as other:
        earn_trust(ws)
        earn_trust(other)
        with monkeypatch.context() as patch:
            patch.setattr(other._nwebsocket.bridge.session, "flush", fail)
            other.send("-a")
            other.send("-b")
            assert failed.wait(LIMIT)
            wait_for_the_loop(ws)
        ws.send("-c")
        ws.send("-d")
        echo.has_got("-c", "-d")
    assert "a fault of ours" in str(log.errors()[0].exc_info)


@pytest.mark.usefixtures("unhurried", "long_lease")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("times", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_interrupted_bursts_are_sent_once_and_in_order(ws: WebSocket, echo: Echo, times: int) -> None:
    barrage, left, returned = Barrage(), 0, list[str]()
    number, tail, deadline = 0, ws._nwebsocket.bridge.sender._burst_end, time.monotonic() + 3 * LIMIT
    earn_trust(ws)
    with no_collection(), alarm(barrage, 0.0005, 0.0005):
        while barrage.count < times or left < times:
            assert time.monotonic() < deadline
            for _ in range(40):
                if barrage.attempt(ws.send, f"+{number}"):
                    returned.append(f"+{number}")
                number += 1
            left += tail.left
            while barrage.attempt(ws.recv, 0.001):
                pass
    ws.send("-end")
    echo.has_got("-end")
    got = echo.got("+")
    assert got == sorted(set(got), key=lambda message: int(message))
    assert set(returned) <= set(got)
    assert ws.bufferedAmount == 0
