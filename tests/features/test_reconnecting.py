"""A socket that comes back: what it keeps, what its handlers hear, and when it ends for good."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peers import LIMIT, TEXT, Authority, Connection, Peer, RawServer, close_frame, echo_server, refusing_address, text
from until import until

from nwebsocket import (
    Cancelled,
    CloseEvent,
    ConnectionClosed,
    ConnectionFailed,
    HandshakeError,
    InvalidArgument,
    InvalidStateError,
    KeepaliveTimeout,
    MessageTooBig,
    OutboxFull,
    QueryMixin,
    ReconnectingWebSocket,
    WebSocket,
)
from nwebsocket._connection import backoff, supervisor
from nwebsocket._connection.callbacks import Callbacks
from nwebsocket._connection.outbox import OutboxBridge
from nwebsocket._threads import the_loop
from nwebsocket.options import Options


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another soon."""
    monkeypatch.setattr(backoff, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(backoff, "MAX_DELAY", 0.05)


class Heard(ReconnectingWebSocket):
    """Notes what its handlers hear."""

    def __init__(self, url: Any, **options: Any) -> None:
        super().__init__(url, **options)
        self.events: queue.Queue[Any] = queue.Queue()

    def onopen(self) -> None:
        self.events.put(("open", self.readyState))

    def onmessage(self, message: Any) -> None:
        self.events.put(message)

    def onerror(self, error: Exception) -> None:
        self.events.put(error)

    def onclose(self, event: CloseEvent) -> None:
        self.events.put(event)

    def next(self) -> Any:
        return self.events.get(timeout=LIMIT)


class Visits:
    """A script for each connection in turn; the last one for all that follow."""

    def __init__(self, *scripts: Callable[[Peer], object]) -> None:
        self._scripts = scripts

    def __call__(self, peer: Peer) -> None:
        self._scripts[min(peer.number, len(self._scripts) - 1)](peer)


def until_close(peer: Peer) -> list[str]:
    """Read the texts until a Close frame, and answer that."""
    texts = []
    while (frame := peer.read_frame()).opcode != 8:
        texts.append(frame.payload.decode())
    peer.send(close_frame(1000))
    return texts


def accept_and(script: Callable[[Peer], object]) -> Callable[[Peer], None]:
    def accepted(peer: Peer) -> None:
        peer.accept()
        script(peer)

    return accepted


reset_at_once = accept_and(Peer.reset)


def reset_after(event: threading.Event) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        assert event.wait(LIMIT)
        peer.reset()

    return script


def reflect(peer: Peer, seen: list[str]) -> None:
    """Send every text back, and note it, until a Close frame, and answer that."""
    while (frame := peer.read_frame()).opcode != 8:
        seen.append(frame.payload.decode())
        peer.send(text(seen[-1]))
    peer.send(close_frame(1000))


# --- Coming back


def test_handlers_hear_everything_in_order() -> None:
    def first(peer: Peer) -> None:
        peer.send(text("one") + text("two") + close_frame(1012, "restart"))
        peer.read_until_close()

    with RawServer(Visits(accept_and(first), reset_at_once, accept_and(until_close))) as server:
        ws = Heard(server.url)
        assert [ws.next() for _ in range(3)] == [("open", WebSocket.OPEN), "one", "two"]
        event = ws.next()
        assert (event.code, event.reason, event.wasClean) == (1012, "restart", True)
        assert 0 <= event.retry_in <= 0.02
        assert ws.next()[0] == "open"
        assert isinstance(ws.next(), ConnectionClosed)
        assert ws.next().code == 1006
        assert ws.next()[0] == "open"
        assert ws.retry_count == 2
        ws.close()
        assert ws.next() == CloseEvent("close", ws, 1000, "", True, None)
        assert ws.wait_closed(LIMIT).code == 1000
        assert ws.readyState == WebSocket.CLOSED


def test_what_is_sent_while_away_is_kept_and_what_onopen_sends_goes_first() -> None:
    got: list[list[str]] = []

    class Subscribing(Heard):
        def onopen(self) -> None:
            super().onopen()
            self.send("subscribe")
            time.sleep(0.01)  # others send meanwhile
            self.send("second")
            self.events.put("done")

    def last(peer: Peer) -> None:
        got.append(until_close(peer))

    with RawServer(Visits(Peer.reset, Peer.reset, accept_and(last))) as server:
        ws = Subscribing(server.url)
        assert ws.readyState == WebSocket.CONNECTING
        for number in range(500):
            ws.send(str(number))
        assert ws.bufferedAmount > 0
        while isinstance(event := ws.next(), Exception):
            pass
        ws.send("after")
        assert (event, ws.next()) == (("open", WebSocket.OPEN), "done")
        ws.close()
        ws.wait_closed(LIMIT)
    assert got == [["subscribe", "second", *map(str, range(500)), "after"]]
    assert ws.bufferedAmount == 0
    assert ws.stats.messages_sent == 503


def test_a_slow_handler_hears_everything_in_order() -> None:
    """The next connection is not opened before the handlers have heard of the end of the last one."""
    again = threading.Event()

    def second(peer: Peer) -> None:
        again.set()
        peer.accept()
        until_close(peer)

    class Slow(Heard):
        def onmessage(self, message: Any) -> None:
            again.wait(0.2)  # for longer than it would take
            super().onmessage(message)

    with RawServer(Visits(accept_and(lambda peer: peer.send(text("one"))), second)) as server:
        ws = Slow(server.url)
        heard = [ws.next() for _ in range(5)]
        assert [type(event).__name__ for event in heard] == ["tuple", "str", "ConnectionLost", "CloseEvent", "tuple"]
        ws.close()
        ws.wait_closed(LIMIT)


def test_a_loss_while_the_open_handler_runs_loses_nothing() -> None:
    got: list[list[str]] = []
    begun, go_on, lost = threading.Event(), threading.Event(), threading.Event()

    class Slow(Heard):
        times = 0

        def onopen(self) -> None:
            self.send("hello", keep=False)
            self.times += 1
            if self.times == 1:
                begun.set()
                assert lost.wait(LIMIT)
                until(lambda: self.readyState != WebSocket.OPEN)
                self.send("from the first onopen")
            self.events.put("opened")

    def first(peer: Peer) -> None:
        peer.accept()
        assert peer.read_frame().payload == b"hello"
        assert go_on.wait(LIMIT)
        peer.reset()
        lost.set()

    with RawServer(Visits(first, accept_and(lambda peer: got.append(until_close(peer))))) as server:
        ws = Slow(server.url, compression=None)
        ws.send("kept 1")
        ws.send("kept 2")
        assert begun.wait(LIMIT)
        ws.send("passing", keep=False)  # waits for the open handler, but not for another connection
        go_on.set()
        assert ws.next() == "opened"
        while ws.next() != "opened":
            pass
        ws.close()
        ws.wait_closed(LIMIT)
    assert got == [["hello", "kept 1", "kept 2", "from the first onopen"]]


def test_recv_goes_on_from_one_connection_to_the_next() -> None:
    def numbered(peer: Peer) -> None:
        peer.accept()
        for number in range(3):
            peer.send(text(f"{peer.number} {number}"))
        if peer.number < 3:
            peer.close()
        else:
            until_close(peer)

    with RawServer(numbered) as server, ReconnectingWebSocket(server.url) as ws:
        assert [ws.recv(LIMIT) for _ in range(12)] == [f"{c} {n}" for c in range(4) for n in range(3)]


def test_wait_open_waits_for_the_next_connection() -> None:
    with RawServer(Visits(Peer.reset, Peer.reset, accept_and(until_close))) as server:
        ws = ReconnectingWebSocket(server.url)
        assert ws.wait_open(LIMIT) is ws
        assert ws.readyState == WebSocket.OPEN
        ws.close()
        ws.wait_closed(LIMIT)


def test_what_was_never_sent_stays_in_the_outbox() -> None:
    with refusing_address() as (host, port):
        ws = Heard(f"ws://{host}:{port}/")
        assert isinstance(ws.next(), ConnectionFailed)
        ws.send("kept")
        assert isinstance(ws.next(), ConnectionFailed)
        ws.close()
        assert ws.wait_closed(LIMIT).code == 1006
    assert list(ws.outbox) == ["kept"]
    assert ws.bufferedAmount == 4


def test_it_comes_back_from_one_time_out_after_another_and_still_hears_of_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with RawServer(accept_and(Peer.stall)) as server:
        ws = Heard(server.url, ping_interval=0.02, ping_timeout=0.02)
        for _ in range(3):
            assert ws.next() == ("open", WebSocket.OPEN)
            assert isinstance(ws.next(), KeepaliveTimeout)
            assert ws.next().retry_in is not None
        monkeypatch.setattr(backoff, "FIRST_DELAY", 1000)
        monkeypatch.setattr(backoff, "MAX_DELAY", 1000)
        while not (isinstance(event := ws.next(), CloseEvent) and (event.retry_in or 0) > 1):
            pass
        ws.close()
        assert isinstance(ws.next(), Cancelled)
        assert ws.wait_closed(LIMIT).code == 1006


# --- The outbox


@pytest.fixture
def away() -> Iterator[str]:
    """A URL where nobody listens."""
    with refusing_address() as (host, port):
        yield f"ws://{host}:{port}/"


def test_the_outbox_can_be_looked_at_and_cleared(away: str) -> None:
    ws = ReconnectingWebSocket(away)
    for message in ("é", b"\0\1", ["a", "b"], bytearray(b"x")):
        ws.send(message)
    assert list(ws.outbox) == ["é", b"\0\1", "ab", b"x"]
    assert (len(ws.outbox), ws.outbox.bytes, ws.bufferedAmount) == (4, 7, 7)
    assert repr(ws.outbox) == "<Outbox 4 messages, 7 bytes>"
    assert ws.outbox.clear() == 4
    assert (list(ws.outbox), ws.bufferedAmount, ws.stats.messages_sent) == ([], 0, 0)
    ws.close()
    ws.wait_closed(LIMIT)


def test_a_full_outbox_is_the_callers_error(away: str) -> None:
    few, small = ReconnectingWebSocket(away, max_outbox=3), ReconnectingWebSocket(away, write_limit=100)
    for number in range(3):
        few.send(str(number))
    with pytest.raises(OutboxFull, match="3 messages wait, max_outbox=3") as caught:
        few.send("3")
    assert isinstance(caught.value, BufferError)
    small.send("x" * 60)
    with pytest.raises(OutboxFull, match="60 bytes wait, 50 more are over write_limit=100"):
        small.send("x" * 50)
    small.send("x" * 40)
    assert (len(few.outbox), len(small.outbox)) == (3, 2)
    for ws in (few, small):
        ws.close()
        ws.wait_closed(LIMIT)


def test_what_is_not_to_be_kept_is_not(away: str) -> None:
    ws = ReconnectingWebSocket(away)
    with pytest.raises(InvalidStateError, match="keep=False"):
        ws.send("now or never", keep=False)
    assert len(ws.outbox) == 0
    ws.close()
    ws.wait_closed(LIMIT)


@pytest.mark.parametrize("max_outbox", [0, -1, 1.5, "1", True])
def test_what_is_no_bound(max_outbox: Any) -> None:
    with pytest.raises((TypeError, InvalidArgument), match="max_outbox must be a whole number of messages"):
        ReconnectingWebSocket("ws://127.0.0.1/", max_outbox=max_outbox)


def test_a_given_socket_is_refused() -> None:
    with socket.socket() as sock, pytest.raises(InvalidArgument, match="no second one"):
        ReconnectingWebSocket("ws://127.0.0.1/", sock=sock)


# --- What was on its way


@pytest.mark.parametrize("how", ["plain", "compressed", "tls"])
@pytest.mark.parametrize(
    "size", [pytest.param(100, marks=pytest.mark.slow), 20_000, pytest.param(300_000, marks=pytest.mark.slow)]
)
def test_what_the_system_had_not_taken_is_sent_again_once_and_in_order(
    how: str, size: int, ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "CONFIRM_INTERVAL", 3600)  # no ping tells what has arrived
    stuck, got, visits = threading.Event(), queue.Queue[list[int]](), itertools.count()

    def read(connection: Connection) -> None:
        numbers: list[int] = []
        is_first = next(visits) == 0
        try:
            for message in connection:
                numbers.append(int(message.split(None, 1)[0]))
                if is_first and len(numbers) == 5:
                    assert stuck.wait(LIMIT)  # the client's buffers and the system's fill meanwhile
                    connection.socket.setsockopt(*LINGER_ZERO)
                    connection.close_socket()
                    return
        finally:
            got.put(numbers)

    tls = {"ssl": ca.server()} if how == "tls" else {}
    compression = "deflate" if how == "compressed" else None
    with echo_server(handler=read, compression=compression, close_timeout=0.1, **tls) as server:
        # No limit: who fills the buffers must not be made to wait.
        ws = Counting(server.url, ssl=ca.client() if tls else None, compression=compression, write_limit=2**40)
        ws.wait_open(LIMIT)
        handshake = ws.stats.bytes_sent
        total = fill(ws, size)
        stuck.set()
        first = got.get(timeout=LIMIT)
        until(lambda: not ws.bufferedAmount)
        ws.close()
        ws.wait_closed(LIMIT)
        second = got.get(timeout=LIMIT)
    assert first == list(range(5))
    assert second == list(range(second[0], total)), "what was kept: to the end, in order, each once"
    assert second[0] >= 5, "nothing twice"
    assert ws.at_risk == second[0], "all that had been taken is at risk"
    if how == "plain":
        sizes = itertools.accumulate(wire_size(f"{number} ", size) for number in range(total))
        assert second[0] == sum(end <= ws.taken - handshake for end in sizes), "just what had not been taken to its end"


class Counting(ReconnectingWebSocket):
    """Knows how many bytes the system had taken at the first loss."""

    taken = 0

    def onclose(self) -> None:
        self.taken = self.taken or self.stats.bytes_sent


def wire_size(prefix: str, size: int) -> int:
    """Of the frame of a message that begins with the prefix (RFC 6455 section 5.2)."""
    length = len(prefix) + size
    return length + 4 + (2 if length < 126 else 4 if length < 65_536 else 10)


def fill(ws: WebSocket, size: int) -> int:
    """Send numbered messages until the system takes no more; return how many."""
    for number in itertools.count():
        ws.send(f"{number} {noise(size)}")
        if ws.bufferedAmount > 2_000_000 and number % 10 == 0:
            before = ws.bufferedAmount
            time.sleep(0.05)
            if ws.bufferedAmount == before:
                return number + 1
    raise AssertionError


LINGER_ZERO = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def noise(size: int) -> str:
    """A text that shrinks to its half at best."""
    return random.randbytes(size // 2).hex()


def test_what_a_ping_has_confirmed_is_not_at_risk() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        for _ in range(3):
            assert peer.read_frame().opcode == TEXT
        ping = peer.read_frame()
        peer.send(bytes([0x8A, len(ping.payload)]) + ping.payload)
        assert peer.read_frame().payload == b"at risk"
        peer.reset()

    with RawServer(Visits(script, accept_and(until_close))) as server:
        ws = Heard(server.url, compression=None)
        assert ws.next()[0] == "open"
        for number in range(3):
            ws.send(str(number))
        ws.ping()
        ws.send("at risk")
        while not isinstance(ws.next(), CloseEvent):
            pass
        assert ws.at_risk == 1
        ws.close()
        ws.wait_closed(LIMIT)


# --- The end for good


def answer(status: int, *headers: str) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        assert peer.request
        lines = [f"HTTP/1.1 {status} No", "Content-Length: 0", *headers, "", ""]
        peer.send("\r\n".join(lines).encode())

    return script


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_final(status: int) -> None:
    with RawServer(answer(status)) as server:
        ws = Heard(server.url)
        error = ws.next()
        assert isinstance(error, HandshakeError)
        assert error.status == status
        assert ws.next().retry_in is None
        with pytest.raises(HandshakeError):
            ws.wait_open(LIMIT)
        with pytest.raises(ConnectionClosed):
            ws.send("x")


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 1010])
def test_a_close_code_can_be_final(code: int) -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=close_frame(code, "no"))
        peer.read_until_close()

    with RawServer(script) as server:
        ws = Heard(server.url)
        assert ws.next()[0] == "open"
        assert (event := ws.next()).code == code
        assert event.retry_in is None
        assert ws.wait_closed(LIMIT) == event


def test_a_message_that_is_too_big_is_final() -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=text("x" * 101))
        peer.read_until_close()

    with RawServer(script) as server:
        ws = Heard(server.url, max_size=100)
        assert ws.next()[0] == "open"
        assert isinstance(ws.next(), MessageTooBig)
        assert ws.next().retry_in is None


def test_should_reconnect_has_the_last_word() -> None:
    class Twice(Heard):
        def should_reconnect(self, event: CloseEvent) -> bool:
            self.events.put(event)
            return self.retry_count < 2

    with RawServer(reset_at_once) as server:
        ws = Twice(server.url)
        heard = []
        while not (heard and isinstance(heard[-1], CloseEvent) and heard[-1].retry_in is None):
            heard.append(ws.next())
        events = [event for event in heard if isinstance(event, CloseEvent)]
        assert [event.retry_in is None for event in events] == [False, False, False, True]
        assert ws.wait_closed(LIMIT).code == 1006


def test_an_exception_in_should_reconnect_is_logged(log: Any) -> None:
    class Broken(Heard):
        def should_reconnect(self, event: CloseEvent) -> bool:
            raise ZeroDivisionError

    with RawServer(Visits(reset_at_once, accept_and(until_close))) as server:
        ws = Broken(server.url)
        opened = 0
        while opened < 2:
            opened += ws.next() == ("open", WebSocket.OPEN)
        ws.close()
        ws.wait_closed(LIMIT)
    assert len(log.errors()) == 1


def test_close_while_there_is_no_connection_ends_it_at_once(away: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_DELAY", 1000)
    monkeypatch.setattr(backoff, "MAX_DELAY", 1000)
    ws = Heard(away)
    assert isinstance(ws.next(), ConnectionFailed)
    start = time.monotonic()
    ws.close()
    assert isinstance(ws.next(), Cancelled)
    assert ws.next().retry_in is None
    assert ws.wait_closed(LIMIT).code == 1006
    assert time.monotonic() - start < 2


def test_close_in_a_handler_ends_it() -> None:
    class Once(Heard):
        def onclose(self, event: CloseEvent) -> None:
            super().onclose(event)
            self.close()

    with RawServer(reset_at_once) as server:
        ws = Once(server.url)
        assert ws.next()[0] == "open"
        assert isinstance(ws.next(), ConnectionClosed)
        assert ws.next().retry_in is not None
        assert isinstance(ws.next(), Cancelled)
        assert ws.next().retry_in is None
        assert ws.wait_closed(LIMIT).code == 1006


def test_close_while_the_server_is_closing_ends_it() -> None:
    answered, called = threading.Event(), threading.Event()

    def close_first(peer: Peer) -> None:
        peer.send(text("last") + close_frame(1012))
        peer.read_until_close()
        answered.set()
        assert called.wait(LIMIT)

    class Leaving(Heard):
        def onmessage(self, message: Any) -> None:
            assert answered.wait(LIMIT)
            self.close()
            called.set()

    with RawServer(Visits(accept_and(close_first), accept_and(until_close))) as server:
        ws = Leaving(server.url)
        assert ws.next()[0] == "open"
        assert ws.next() == CloseEvent("close", ws, 1012, "", True, None)
        assert ws.wait_closed(LIMIT).code == 1012


def close_first(peer: Peer) -> None:
    peer.send(text("bye") + close_frame(1012))
    peer.read_until_close()


def close_last(peer: Peer) -> None:
    peer.read_until_close()
    peer.send(close_frame(1000))


TREATMENTS = [Peer.reset, *map(accept_and, (Peer.reset, Peer.close, Peer.stall, close_first, close_last))]


def treat_at_random(peer: Peer) -> None:
    with contextlib.suppress(OSError, EOFError):  # the client may leave at any moment
        random.choice(TREATMENTS)(peer)


@pytest.mark.slow
@pytest.mark.parametrize("caller", ["main", "onopen", "onmessage", "onerror", "onclose"])
def test_close_at_any_moment_ends_it(caller: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "MAX_DELAY", 0.005)

    class Leaving(Feed):
        def onopen(self) -> None:
            self.leave("onopen")

        def onmessage(self, message: Any) -> None:
            self.leave("onmessage")

        def onerror(self, error: Exception) -> None:
            self.leave("onerror")

        def onclose(self, event: CloseEvent) -> None:
            events.append(event)
            self.leave("onclose")

        def leave(self, where: str) -> None:
            if where == caller:
                self.close()

    limits: dict[str, Any] = {"ping_interval": 0.02, "ping_timeout": 0.02, "close_timeout": 0.2}
    with RawServer(treat_at_random) as server:
        for callbacks in ["thread", "loop"] * 4:
            events: list[CloseEvent] = []
            feed = Leaving(server.url, callbacks=callbacks, **limits)
            query = feed.query({"x": 1}, retry=True) if caller in ("main", "onopen") else None
            time.sleep(random.uniform(0, 0.1))  # a random moment is what is wanted
            feed.close()
            last = feed.wait_closed(LIMIT)
            assert [event for event in events if event.retry_in is None] == events[-1:] == [last]
            assert query is None or query.done()


def test_with_closes_it(echo: str) -> None:
    with ReconnectingWebSocket(echo) as ws:
        ws.send("x")
        assert ws.recv(LIMIT) == "x"
    assert ws.readyState == WebSocket.CLOSED
    assert ws.at_risk == 0


# --- What is asked before each attempt


def test_retry_after_is_heeded() -> None:
    with RawServer(Visits(answer(503, "Retry-After: 1"), accept_and(until_close))) as server:
        start = time.monotonic()
        with ReconnectingWebSocket(server.url):
            assert 1 <= time.monotonic() - start < 3


def test_the_token_is_asked_for_again_after_401() -> None:
    tokens = iter(["old", "new"])
    seen: list[str] = []

    def script(peer: Peer) -> None:
        seen.append(peer.headers["authorization"])
        if seen[-1] == "Bearer old":
            answer(401)(peer)
        else:
            peer.accept()
            until_close(peer)

    with (
        RawServer(script) as server,
        ReconnectingWebSocket(server.url, headers=lambda: {"Authorization": f"Bearer {next(tokens)}"}),
    ):
        assert seen == ["Bearer old", "Bearer new"]


def test_url_and_protocols_may_be_functions_that_run_on_a_thread_of_their_own() -> None:
    threads: set[str] = set()
    paths: list[str] = []

    def script(peer: Peer) -> None:
        paths.append(f"{peer.path} {peer.headers['sec-websocket-protocol']}")
        if peer.number:
            peer.accept(protocol="v1")
            until_close(peer)
        else:
            peer.reset()

    def ask(kind: str) -> str:
        threads.add(threading.current_thread().name)
        return f"{server.url}{len(paths)}" if kind == "url" else f"v{len(paths)}"

    with RawServer(script) as server:
        ws = ReconnectingWebSocket(lambda: ask("url"), lambda: ask("protocol"))
        assert ws.url in ("ws://not-known-yet/", f"{server.url}0")
        with ws:
            assert paths == ["/0 v0", "/1 v1"]
            assert (ws.url, ws.protocol) == (f"{server.url}1", "v1")
    assert threads == {"nwebsocket-ask"}


def test_a_name_that_cannot_be_found_for_a_while(echo: str) -> None:
    urls = itertools.chain(["ws://no..such.host/"] * 2, itertools.repeat(echo))
    ws = Heard(lambda: next(urls))
    assert isinstance(ws.next(), ConnectionFailed)
    assert isinstance(ws.next(), ConnectionFailed)
    assert ws.next()[0] == "open"
    ws.close()
    ws.wait_closed(LIMIT)


def test_an_exception_while_asking_is_an_error_like_others(echo: str) -> None:
    asked = itertools.count()

    def url() -> str:
        ways = [lambda: 1 / 0, sys.exit, lambda: "nonsense", lambda: 7, lambda: echo]
        return ways[next(asked)]()  # type: ignore[no-any-return, operator]

    ws = Heard(url)
    assert "ZeroDivisionError" in str(ws.next())
    assert "SystemExit" in str(ws.next())
    assert "nonsense" in str(ws.next())
    assert "the URL must be a str" in str(ws.next())
    assert ws.next()[0] == "open"
    ws.close()
    ws.wait_closed(LIMIT)


# --- With queries


class Feed(QueryMixin, ReconnectingWebSocket):
    """Both."""


def lose_one(peer: Peer) -> None:
    peer.accept()
    peer.read_frame()
    peer.reset()


def reflect_one(peer: Peer) -> None:
    peer.accept()
    peer.send(text(peer.read_frame().payload.decode()))
    until_close(peer)


def test_a_query_that_may_be_asked_twice_is_asked_again() -> None:
    with RawServer(Visits(lose_one, lose_one, reflect_one)) as server, Feed(server.url, compression=None) as feed:
        query = feed.query({"x": 1}, retry=True)
        assert query.result(LIMIT)["x"] == 1
        assert (feed.stats.failed, feed.stats.answered, feed.stats.messages_sent) == (0, 1, 3)


def test_a_query_that_still_waits_is_not_sent_twice() -> None:
    asked: list[str] = []

    def count(peer: Peer) -> None:
        peer.accept()
        asked.append(peer.read_frame().payload.decode())
        peer.send(text(asked[-1]))
        asked.extend(until_close(peer))

    with RawServer(Visits(reset_at_once, reset_at_once, count)) as server:
        feed = Feed(server.url, compression=None)
        query = feed.query({"x": 1}, retry=True)  # perhaps taken by one of the first two, perhaps not
        assert query.result(LIMIT)["x"] == 1
        feed.close()
        feed.wait_closed(LIMIT)
    assert len(asked) == 1


def test_retry_is_for_what_comes_back(echo: str) -> None:
    class Plain(QueryMixin, WebSocket):
        pass

    with Plain(echo) as plain, pytest.raises(InvalidArgument, match="retry=True is for a ReconnectingWebSocket"):
        plain.query({"x": 1}, retry=True)


def test_a_query_in_flight_fails_at_a_loss_and_the_next_one_is_answered() -> None:
    with RawServer(Visits(lose_one, reflect_one)) as server, Feed(server.url, compression=None) as feed:
        with pytest.raises(ConnectionClosed, match="reset by peer"):
            feed.query({"x": 1}).result(LIMIT)
        assert feed.query({"x": 2}).result(LIMIT)["x"] == 2
        assert (feed.stats.failed, feed.stats.answered) == (1, 1)


@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize("until", ["it is closed", "it is open again"])
@pytest.mark.parametrize("during", ["tag_request", "send"])
def test_a_query_that_a_loss_overtakes_goes_out_once(during: str, until: str, retry: bool) -> None:
    lose, closed, opened_again = threading.Event(), threading.Event(), threading.Event()
    asked: list[str] = []

    def pause(name: str) -> None:
        if name == during:
            lose.set()
            assert (closed if until == "it is closed" else opened_again).wait(LIMIT)

    class Overtaken(Feed):
        def onopen(self) -> None:
            if closed.is_set():
                opened_again.set()

        def onclose(self) -> None:
            closed.set()

        def tag_request(self, request: Any, tag: int) -> Any:
            pause("tag_request")
            return super().tag_request(request, tag)

        def send(self, data: Any, **options: Any) -> None:
            pause("send")
            super().send(data, **options)

    with RawServer(Visits(accept_and(reset_after(lose)), accept_and(lambda peer: reflect(peer, asked)))) as server:
        feed = Overtaken(server.url, compression=None).wait_open(LIMIT)
        query = feed.query({"x": 1}, retry=retry)
        fails = during == "send" and not retry  # it was under way
        if fails:
            with pytest.raises(ConnectionClosed, match="reset by peer"):
                query.result(LIMIT)
        else:
            assert query.result(LIMIT)["x"] == 1
        feed.wait_open(LIMIT)
        feed.close()
        feed.wait_closed(LIMIT)
    assert len(asked) == (0 if fails else 1)
    assert feed.stats.messages_received == len(asked)
    assert feed.stats.messages_sent == len(asked)
    assert feed.bufferedAmount == 0


def test_a_query_that_is_no_text_is_the_callers_error(away: str) -> None:
    class Wrong(Feed):
        def tag_request(self, request: Any, tag: int) -> str:
            return "\ud800"

        def send(self, data: Any, **options: Any) -> None:
            raise AssertionError("a loss could come now, and would find what the loop thread cannot send again")

    feed = Wrong(away)
    with pytest.raises(UnicodeEncodeError):
        feed.query({"x": 1}, retry=True)
    assert (feed.stats.failed, feed.stats.in_flight, len(feed.outbox)) == (1, 0, 0)
    feed.close()
    feed.wait_closed(LIMIT)


def test_a_query_that_waits_for_room_goes_out_once() -> None:
    asked: list[str] = []
    full = threading.Event()

    class Roomless(Feed):
        def send(self, data: Any, **options: Any) -> None:
            if self.bufferedAmount >= 65_536:
                full.set()  # super().send() will wait
            super().send(data, **options)

    with RawServer(Visits(accept_and(reset_after(full)), accept_and(lambda peer: reflect(peer, asked)))) as server:
        feed = Roomless(server.url, compression=None, write_limit=65_536).wait_open(LIMIT)
        pad = "x" * 100_000
        queries = []
        while not full.is_set():
            queries.append(feed.query({"x": len(queries), "pad": pad}, retry=True))
        assert [query.result(LIMIT)["x"] for query in queries] == list(range(len(queries)))
        feed.close()
        feed.wait_closed(LIMIT)
    assert len(asked) == len(set(asked)) == len(queries)


# --- What would wait, or be sent, for ever or too late


def wait_for_query(ws: Any) -> None:
    ws.query({"x": 1}, retry=True).result()


WAITS: list[tuple[str, Callable[[Any], object]]] = [
    ("onmessage", wait_for_query),
    ("onmessage", lambda ws: [ws.query({"x": n}, retry=True) for n in range(3)]),
    ("onclose", lambda ws: ws.wait_open()),
    ("onopen", lambda ws: list(ws)),
]


@pytest.mark.parametrize(("name", "wait"), WAITS, ids=["query", "room for queries", "wait_open", "recv"])
def test_a_handler_that_waits_for_the_next_connection_holds_it_up(name: str, wait: Callable[[Any], object]) -> None:
    caught: queue.Queue[BaseException] = queue.Queue()
    again = threading.Event()

    def handler(ws: Any, *_: object) -> None:
        if again.is_set() or caught.qsize():
            return
        try:
            wait(ws)
        except RuntimeError as error:
            caught.put(error)

    def first(peer: Peer) -> None:
        peer.send(text("go"))
        if name == "onmessage":
            peer.read_frame()
        peer.reset()

    def last(peer: Peer) -> None:
        again.set()
        until_close(peer)

    handlers = {"onmessage": lambda *_: None} if name == "onclose" else {}
    kind = type("Waiting", (Feed,), {"max_queries": 2, **handlers, name: handler})
    with RawServer(Visits(accept_and(first), accept_and(last))) as server:
        ws = kind(server.url)
        assert "not made before this handler has returned" in str(caught.get(timeout=LIMIT))
        assert again.wait(LIMIT)
        ws.wait_open(LIMIT)
        ws.close()
        ws.wait_closed(LIMIT)


def test_a_query_that_is_given_up_does_not_go_out(away: str) -> None:
    feed = Feed(away)
    feed.send("first")
    assert feed.query({"x": 1}).cancel()
    assert feed.query({"x": 2}, retry=True).cancel()
    with pytest.raises(TimeoutError):
        feed.query({"x": 3}, timeout=0.02).result(LIMIT)
    feed.send("last")
    assert list(feed.outbox) == ["first", "last"]
    assert (feed.bufferedAmount, feed.stats.messages_sent) == (9, 2)
    feed.close()
    feed.wait_closed(LIMIT)


def test_to_give_up_one_query_does_not_copy_all_that_waits(away: str) -> None:
    feed = Feed(away)
    kept = feed._nwebsocket.bridge.outgoing.kept
    feed.send("first")
    queries = [feed.query({"x": number}) for number in range(100)]
    feed.send("last")
    for query in (queries[0], queries[-1], queries[50]):
        assert query.cancel()
    assert feed._nwebsocket.bridge.outgoing.kept is kept
    waiting = [json.loads(message)["x"] for message in list(feed.outbox)[1:-1]]
    assert waiting == [*range(1, 50), *range(51, 99)]
    assert feed.bufferedAmount == feed.outbox.bytes == sum(map(len, feed.outbox))
    assert feed.stats.messages_sent == len(feed.outbox) == 99
    feed.close()
    feed.wait_closed(LIMIT)


def test_a_query_that_has_failed_does_not_go_out() -> None:
    got: list[str] = []
    full = threading.Event()

    def last(peer: Peer) -> None:
        got.extend(until_close(peer))

    with RawServer(Visits(accept_and(reset_after(full)), accept_and(last))) as server:
        feed = Feed(server.url, compression=None).wait_open(LIMIT)
        queries = [feed.query({"x": number, "pad": "x" * 500_000}) for number in range(20)]  # more than buffers take
        feed.send("a message")
        full.set()
        for query in queries:
            assert isinstance(query.exception(LIMIT), ConnectionClosed)
        feed.wait_open(LIMIT)
        feed.close()
        feed.wait_closed(LIMIT)
    assert got == ["a message"]
    assert feed.stats.failed == 20
    assert feed.bufferedAmount == 0


def test_what_is_not_to_be_kept_and_comes_too_late_is_no_error(log: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The way to subscribe in docs/reconnecting.md, where the connection is lost before onopen has been called."""

    class Subscribing(Heard):
        def onclose(self, event: CloseEvent) -> None:
            if event.retry_in is not None:
                self.send("late", keep=False)

    with caplog.at_level("INFO", "nwebsocket"), RawServer(Visits(reset_at_once, accept_and(until_close))) as server:
        ws = Subscribing(server.url)
        assert ws.next()[0] == "open"
        assert isinstance(ws.next(), ConnectionClosed)
        assert ws.next()[0] == "open"
        ws.close()
        ws.wait_closed(LIMIT)
    assert "handler onclose of Subscribing came too late: there is no connection now" in caplog.text
    assert not log.errors()


def test_a_handler_that_sends_on_another_socket_too_early_is_at_fault(log: Any, away: str, echo: str) -> None:
    early, heard = ReconnectingWebSocket(away), threading.Event()

    def pass_on(message: str) -> None:
        heard.set()
        early.send(message, keep=False)

    with ReconnectingWebSocket(echo) as ws:
        ws.onmessage = pass_on
        ws.send("x")
        assert heard.wait(LIMIT)
        ws.close()
        ws.wait_closed(LIMIT)
        assert [record.exc_info[0] for record in log.errors()] == [InvalidStateError]
    early.close()
    early.wait_closed(LIMIT)


def test_a_wait_that_ends_says_what_went_wrong(away: str) -> None:
    ws = Heard(away)
    assert isinstance(ws.next(), ConnectionFailed)
    with pytest.raises(TimeoutError, match=r"is not open after 0\.01 s; the last attempt: .*Connection refused"):
        ws.wait_open(0.01)
    ws.close()
    ws.wait_closed(LIMIT)


# --- Races, which tests/system/stress.py has found


def test_an_end_for_good_just_before_a_loss_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """close() is called when the callback thread knows already that a close is to be told, and not yet which."""
    dispatch, closed = Callbacks._dispatch, threading.Event()

    def dispatch_late(callbacks: Callbacks, owner: Any, event_type: Any) -> None:
        if event_type == "close" and not closed.is_set():
            closed.set()
            owner.close()
            bridge = owner._nwebsocket.bridge
            assert bridge.wait(lambda: bridge.life.ending is not None, LIMIT)
        dispatch(callbacks, owner, event_type)

    def leave(peer: Peer) -> None:
        peer.send(close_frame(1012, "restart"))
        peer.read_until_close()

    monkeypatch.setattr(Callbacks, "_dispatch", dispatch_late)
    with RawServer(accept_and(leave)) as server:
        ws = Heard(server.url)
        assert ws.next()[0] == "open"
        assert isinstance(ws.next(), Cancelled)
        event = ws.next()
        assert (event.code, event.retry_in) == (1006, None)
        ws.wait_closed(LIMIT)
        assert ws.events.empty()


def test_bytes_are_counted_once_while_a_session_follows_another() -> None:
    class Session:
        bytes_received = 20

        @property
        def bytes_sent(self) -> int:
            if not begun.is_set():
                begun.set()
                following.start()
                following.join(0.1)  # which it does not do now
            return 10

    class Next:
        bytes_sent = bytes_received = 0

    begun, bridge = threading.Event(), OutboxBridge(Options(), 1)
    following = threading.Thread(target=bridge.next_session, args=(Next(),))
    bridge.session = Session()  # type: ignore[assignment]
    assert bridge.bytes_on_wire() == (10, 20)
    following.join(LIMIT)
    assert bridge.session.bytes_sent == 0
    assert bridge.bytes_on_wire() == (10, 20)


def test_what_is_kept_while_the_server_closes_is_counted() -> None:
    """The loop counts anew what was accepted when it has written all; what is kept is neither written nor to be."""
    closing, flushed, looked = threading.Event(), threading.Event(), threading.Event()
    got: queue.Queue[bytes] = queue.Queue()

    def close_slowly(peer: Peer) -> None:
        peer.send(close_frame(1012, "restart"))
        peer.read_until_close()
        closing.set()
        assert looked.wait(LIMIT)

    def take_one(peer: Peer) -> None:
        got.put(peer.read_frame().payload)
        until_close(peer)

    async def has_flushed() -> None:
        flushed.set()

    with RawServer(Visits(accept_and(close_slowly), accept_and(take_one))) as server:
        ws = ReconnectingWebSocket(server.url)
        assert closing.wait(LIMIT)
        ws.send("kept")
        ws._nwebsocket.bridge.post_flush()
        ws._nwebsocket.bridge.post(has_flushed)
        assert flushed.wait(LIMIT)
        assert (ws.stats.messages_sent, ws.bufferedAmount) == (1, 4)
        looked.set()
        assert got.get(timeout=LIMIT) == b"kept"
        ws.close()
        ws.wait_closed(LIMIT)
        assert (ws.stats.messages_sent, ws.bufferedAmount, ws.at_risk) == (1, 0, 0)


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_connection_without_a_message_sends_none_of_the_one_before_again(
    compression: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_DELAY", 0.01)
    received: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number == 0:
            received.extend(peer.read_frame().payload for _ in range(20))
        elif peer.number > 1:
            received.extend(frame.payload for frame in peer.read_until_close()[:-1])
            peer.send(close_frame(1000))

    with RawServer(script) as server, ReconnectingWebSocket(server.url, compression=compression) as ws:
        for number in range(20):
            ws.send(str(number))
        until(lambda: ws.retry_count == 2 and ws.readyState is ws.OPEN, "it has not come back twice")
        ws.send("the last")
    assert received == [*(str(number).encode() for number in range(20)), b"the last"]


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_what_is_sent_to_a_stream_that_has_ended_is_kept(compression: Any) -> None:
    """The system would take it, for it does not know yet that the server is gone for good."""
    leave, received = threading.Event(), queue.SimpleQueue[bytes]()

    def script(peer: Peer) -> None:
        peer.accept()
        if peer.number == 0:
            leave.wait(LIMIT)
            peer.close()
        else:
            received.put(peer.read_frame().payload)
            peer.read_until_close()
            peer.send(close_frame(1000))

    with RawServer(script) as server, ReconnectingWebSocket(server.url, compression=compression) as ws:
        busy, rest = threading.Event(), threading.Event()
        the_loop.current().call_later(0, lambda: (busy.set(), rest.wait(LIMIT)))
        assert busy.wait(LIMIT)  # so it is not the loop that sees the end
        leave.set()
        until(ws._nwebsocket.session._transport.has_ended)
        ws.send("x")
        rest.set()
        assert received.get(timeout=LIMIT) == b"x"
