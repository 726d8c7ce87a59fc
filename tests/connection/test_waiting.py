"""What waits: wait_open(), wait_closed(), recv(), iteration, ping(), `with`; and what tells about the connection."""

from __future__ import annotations

import contextlib
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import garbage
import pytest
from holding import held_loop
from peers import (
    LIMIT,
    PING,
    Authority,
    Peer,
    RawServer,
    binary,
    close_frame,
    dead_address,
    echo_server,
    pong,
    refusing_address,
    text,
)

from nwebsocket import (
    Cancelled,
    CloseEvent,
    ConnectionClosed,
    ConnectionFailed,
    ConnectionLost,
    HandshakeError,
    InvalidStateError,
    OpenTimeout,
    ProtocolError,
    QueryMixin,
    Stats,
    TLSError,
    WaitTimeout,
    WebSocket,
    close_all,
    connect,
    open_sockets,
)
from nwebsocket._base.log import Trace
from nwebsocket._connection.bridge import Bridge
from nwebsocket._connection.opening import Opening
from nwebsocket._connection.session import Session
from nwebsocket._threads import waiting as waiting_module
from nwebsocket.options import Options


def never_answer(peer: Peer) -> None:
    """Take the request, and no more."""
    assert peer.request
    peer.stall()


def fall_silent(peer: Peer) -> None:
    peer.accept()
    peer.stall()


def burst(peer: Peer) -> None:
    """Accept, and send two messages and a Close frame with the 101."""
    peer.accept(after=text("1") + binary(b"2") + close_frame(3001, "bye"))
    peer.read_until_close()


@contextlib.contextmanager
def opening(script: Callable[[Peer], object], **options: Any) -> Iterator[WebSocket]:
    """A socket whose server runs `script`; closed without much patience."""
    with RawServer(script) as server:
        ws = WebSocket(server.url, close_timeout=0.1, **options)
        try:
            yield ws
        finally:
            ws.close()
            ws.wait_closed(LIMIT)


@contextlib.contextmanager
def opened(script: Callable[[Peer], object], **options: Any) -> Iterator[WebSocket]:
    """The same, once it is open."""
    with opening(script, **options) as ws:
        yield ws.wait_open(LIMIT)


def in_thread(function: Callable[[], object]) -> queue.SimpleQueue[Any]:
    """Run `function` in a thread; what it returns or raises comes out of the queue."""
    result: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        try:
            result.put(function())
        except Exception as error:
            result.put(error)

    threading.Thread(target=run).start()
    return result


WAITS: dict[str, Callable[[WebSocket, Any], object]] = {
    "wait_open": WebSocket.wait_open,
    "wait_closed": WebSocket.wait_closed,
    "recv": WebSocket.recv,
    "ping": WebSocket.ping,
}
OPEN_WAITS = {name: wait for name, wait in WAITS.items() if name != "wait_open"}


# --- Timeouts


@pytest.mark.parametrize("wait", OPEN_WAITS.values(), ids=OPEN_WAITS)
@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_timeout_raises_wait_timeout_and_harms_nothing(
    wait: Callable[[WebSocket, float], object], timeout: float
) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        while (received := peer.read_frame()).opcode == PING:
            pass
        assert received.payload == b"go"
        peer.send(text("here"))
        peer.stall()

    with opened(script) as ws:
        started = time.monotonic()
        with pytest.raises(WaitTimeout) as raised:
            wait(ws, timeout)
        assert timeout <= time.monotonic() - started < timeout + 1
        assert isinstance(raised.value, TimeoutError)
        assert ws.url in str(raised.value)
        assert ws.readyState == WebSocket.OPEN
        ws.send("go")
        assert ws.recv(LIMIT) == "here"


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_wait_open_with_a_timeout(timeout: float) -> None:
    with RawServer(never_answer) as server:
        ws = WebSocket(server.url)
        with pytest.raises(WaitTimeout):
            ws.wait_open(timeout)
        assert ws.readyState == WebSocket.CONNECTING
        ws.close()
        ws.wait_closed(LIMIT)


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
@pytest.mark.parametrize(
    ("timeout", "error"),
    [("1", TypeError), (True, TypeError), ([], TypeError), (-1e-9, ValueError), (math.nan, ValueError)],
)
def test_bad_timeouts(echo: str, wait: Callable[[WebSocket, Any], Any], timeout: Any, error: type[Exception]) -> None:
    with WebSocket(echo) as ws, pytest.raises(error, match="timeout"):
        wait(ws, timeout)


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
@pytest.mark.parametrize("timeout", [1e300, math.inf, 2**70])
def test_endless_timeouts_wait(wait: Callable[[WebSocket, Any], object], timeout: Any) -> None:
    def script(peer: Peer) -> None:
        assert peer.request
        may_go_on.wait(LIMIT)
        peer.accept()
        if wait is WebSocket.ping:
            peer.send(pong(peer.read_frame().payload))
        peer.send(text("here"))
        if wait is WebSocket.wait_closed:
            peer.send(close_frame(1000))
        peer.read_until_close()

    may_go_on = threading.Event()
    with RawServer(script) as server:
        ws = WebSocket(server.url, close_timeout=0.1)
        if wait is WebSocket.ping:
            may_go_on.set()
            ws.wait_open(LIMIT)
        result = in_thread(lambda: wait(ws, timeout))
        may_go_on.set()
        assert not isinstance(result.get(timeout=LIMIT), Exception)
        ws.close()
        ws.wait_closed(LIMIT)


def test_a_timeout_of_zero_gives_what_is_there(echo: str) -> None:
    with opening(burst) as ws:
        assert ws.wait_closed(LIMIT) == ws.wait_closed(0)
        assert [ws.recv(0), ws.recv(0)] == ["1", b"2"]
    with WebSocket(echo) as ws:
        assert ws.wait_open(0) is ws


# --- wait_open


def test_wait_open_returns_the_socket(echo: str) -> None:
    ws = WebSocket(echo)
    assert ws.wait_open() is ws
    assert ws.readyState == WebSocket.OPEN
    assert ws.wait_open() is ws
    ws.close()
    ws.wait_closed(LIMIT)


def test_refused() -> None:
    with refusing_address() as (host, port):
        ws = WebSocket(f"ws://{host}:{port}/")
        with pytest.raises(ConnectionFailed, match=str(port)) as raised:
            ws.wait_open(LIMIT)
    assert isinstance(raised.value, ConnectionError)
    assert isinstance(raised.value.__cause__, OSError)


def test_an_unknown_host() -> None:
    with pytest.raises(ConnectionFailed, match=r"no\.\.such\.host"):
        WebSocket("ws://no..such.host/").wait_open(LIMIT)


def test_a_rejected_handshake_tells_status_headers_and_body() -> None:
    def script(peer: Peer) -> None:
        assert peer.request
        peer.send(b"HTTP/1.1 403 Forbidden\r\nX-Why: token\r\nContent-Length: 7\r\n\r\nexpired")

    with RawServer(script) as server:
        ws = WebSocket(server.url)
        with pytest.raises(HandshakeError, match="403") as raised:
            ws.wait_open(LIMIT)
    error = raised.value
    assert error.status == 403
    assert ("x-why", "token") in [(name.lower(), value) for name, value in error.headers]
    assert error.body == b"expired"
    assert ws.response is None


def test_a_certificate_that_nobody_vouches_for(ca: Authority) -> None:
    with RawServer(Peer.stall, ssl=ca.server()) as server, pytest.raises(TLSError, match=r"(?i)certificate"):
        WebSocket(server.url).wait_open(LIMIT)


def test_a_certificate_for_another_host(ca: Authority) -> None:
    with (
        RawServer(Peer.stall, ssl=ca.server("example.org")) as server,
        pytest.raises(TLSError, match=r"(?i)mismatch|not valid for"),
    ):
        WebSocket(server.url, ssl=ca.client()).wait_open(LIMIT)


@contextlib.contextmanager
def stalls_at_tcp() -> Iterator[str]:
    with dead_address() as (host, port):
        yield f"ws://{host}:{port}/"


@contextlib.contextmanager
def stalls_at_tls() -> Iterator[str]:
    with RawServer(Peer.stall) as server:
        yield server.url.replace("ws:", "wss:")


@contextlib.contextmanager
def stalls_at_http() -> Iterator[str]:
    with RawServer(never_answer) as server:
        yield server.url


@pytest.mark.parametrize("stalling", [stalls_at_tcp, stalls_at_tls, stalls_at_http])
def test_open_timeout(stalling: Callable[[], contextlib.AbstractContextManager[str]]) -> None:
    with stalling() as url:
        started = time.monotonic()
        ws = WebSocket(url, open_timeout=0.3)
        with pytest.raises(OpenTimeout, match=r"0\.3 s") as raised:
            ws.wait_open(LIMIT)
        assert 0.3 <= time.monotonic() - started < 1.3
    assert isinstance(raised.value, TimeoutError)
    assert isinstance(raised.value, ConnectionFailed)
    assert ws.readyState == WebSocket.CLOSED


def test_open_at_the_very_moment_of_the_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task hears that it is cancelled only after it has finished the handshake."""
    run, open_within_limits = Opening.run, Session._open_within_limits
    sessions: list[Session] = []

    async def run_until_the_time_out(opening: Opening) -> None:
        await run(opening)
        await sessions[0]._tick()

    async def take_note_and_open(session: Session) -> None:
        sessions.append(session)
        await open_within_limits(session)

    monkeypatch.setattr(Opening, "run", run_until_the_time_out)
    monkeypatch.setattr(Session, "_open_within_limits", take_note_and_open)
    with RawServer(fall_silent) as server:
        ws = WebSocket(server.url, open_timeout=5)
        with pytest.raises(OpenTimeout, match="5 s has passed"):
            ws.wait_open(LIMIT)
        assert ws.wait_closed(LIMIT).code == 1006


def test_what_has_begun_is_closed_if_there_is_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_loop(*_: Any) -> Any:
        raise RuntimeError("no thread")

    heard: queue.Queue[bytes] = queue.Queue()

    def listen(peer: Peer) -> None:
        assert peer.request
        heard.put(peer.read_eof())

    monkeypatch.setattr("nwebsocket._connection.parts.Bridge", no_loop)
    with RawServer(listen) as server:
        with pytest.raises(RuntimeError, match="no thread"):
            WebSocket(server.url)
        assert heard.get(timeout=LIMIT) == b""


@pytest.mark.parametrize("stalling", [stalls_at_tcp, stalls_at_tls, stalls_at_http])
def test_close_while_connecting_gives_up_at_once(
    stalling: Callable[[], contextlib.AbstractContextManager[str]],
) -> None:
    with stalling() as url:
        ws = WebSocket(url)
        result = in_thread(ws.wait_open)
        with pytest.raises(WaitTimeout):
            ws.wait_open(0.1)
        with held_loop():  # else it may be done with it before we look
            ws.close()
            assert ws.readyState == WebSocket.CLOSING
        assert isinstance(result.get(timeout=1), Cancelled)
        assert ws.wait_closed(1).code == 1006


def test_what_went_wrong_is_told_as_often_as_it_is_asked() -> None:
    with refusing_address() as (host, port):
        ws = WebSocket(f"ws://{host}:{port}/")
        for _ in range(2):
            with pytest.raises(ConnectionFailed):
                ws.wait_open(LIMIT)
    with pytest.raises(ConnectionClosed) as raised:
        ws.recv(LIMIT)
    assert isinstance(raised.value.__cause__, ConnectionFailed)
    with pytest.raises(ConnectionClosed):
        ws.send("x")


def test_wait_open_after_the_end_returns_the_socket_with_what_came() -> None:
    """Whether the server closes just before or just after wait_open() looks must make no difference."""
    with opening(burst) as ws:
        ws.wait_closed(LIMIT)
        assert ws.wait_open() is ws
        assert list(ws) == ["1", b"2"]


def test_wait_open_works_in_a_callback(echo: str) -> None:
    result: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with WebSocket(echo) as ws:
        ws.onopen = lambda: result.put(ws.wait_open(LIMIT))
        assert result.get(timeout=LIMIT) is ws


# --- Several threads


def test_several_threads_wait_for_the_same() -> None:
    def script(peer: Peer) -> None:
        assert peer.request
        may_go_on.wait(LIMIT)
        peer.accept()
        peer.send(close_frame(1000))
        peer.read_until_close()

    may_go_on = threading.Event()
    with RawServer(script) as server:
        ws = WebSocket(server.url)
        closing = [in_thread(ws.wait_closed) for _ in range(5)]
        with pytest.raises(WaitTimeout):
            ws.wait_open(0.05)
        may_go_on.set()
        events = [result.get(timeout=LIMIT) for result in closing]
    assert events == [CloseEvent("close", ws, 1000, "", True)] * 5


def test_several_threads_receive_each_message_once(echo: str) -> None:
    with WebSocket(echo) as ws:
        results = [in_thread(lambda: ws.recv(LIMIT)) for _ in range(8)]
        for number in range(8):
            ws.send(str(number))
        received = [result.get(timeout=LIMIT) for result in results]
    assert sorted(received) == [str(number) for number in range(8)]


def test_the_end_releases_every_thread_that_waits() -> None:
    with opened(fall_silent) as ws:
        waiting = [in_thread(ws.recv) for _ in range(4)] + [in_thread(lambda: ws.ping(None)) for _ in range(4)]
        with pytest.raises(WaitTimeout):
            ws.wait_closed(0.05)
        ws.close()
        errors = [result.get(timeout=LIMIT) for result in waiting]
        assert {type(error) for error in errors} == {ConnectionLost}


# --- recv and iteration


def test_recv_gives_the_rest_and_then_how_it_ended() -> None:
    with opening(burst) as ws:
        ws.wait_closed(LIMIT)
        assert [ws.recv(), ws.recv()] == ["1", b"2"]
        for _ in range(2):
            with pytest.raises(ConnectionClosed, match="3001 'bye'") as raised:
                ws.recv()
            error = raised.value
            assert (error.code, error.reason, error.closed_first) == (3001, "bye", "server")


def test_recv_tells_that_the_client_closed_first(echo: str) -> None:
    with WebSocket(echo) as ws:
        ws.close(3000, "enough")
        with pytest.raises(ConnectionClosed) as raised:
            ws.recv(LIMIT)
    assert (raised.value.code, raised.value.reason, raised.value.closed_first) == (3000, "enough", "client")


def test_recv_tells_that_the_line_was_cut() -> None:
    with opening(Peer.accept) as ws:
        with pytest.raises(ConnectionLost) as raised:
            ws.recv(LIMIT)
        assert (raised.value.code, raised.value.reason, raised.value.closed_first) == (1006, "", None)


def test_a_reset_is_told_also_when_a_sender_meets_it_first() -> None:
    reset = threading.Event()

    def script(peer: Peer) -> None:
        peer.accept()
        assert may_reset.wait(LIMIT)
        peer.reset()
        reset.set()

    may_reset = threading.Event()
    with RawServer(script) as server, WebSocket(server.url) as ws:
        with held_loop():  # it reads nothing now
            may_reset.set()
            assert reset.wait(LIMIT)
            ws.send("x")
        with pytest.raises(ConnectionClosed, match="the connection was lost: Connection reset by peer"):
            ws.recv(LIMIT)


def test_recv_waits_through_the_connecting(echo: str) -> None:
    ws = WebSocket(echo)
    ws.onopen = lambda: ws.send("hello")
    assert ws.recv(LIMIT) == "hello"
    ws.close()
    ws.wait_closed(LIMIT)


@pytest.mark.parametrize("listener", [False, True], ids=["attribute", "listener"])
def test_recv_beside_a_message_handler_raises(echo: str, listener: bool) -> None:
    with WebSocket(echo) as ws:
        if listener:
            ws.addEventListener("message", print)
        else:
            ws.onmessage = print
        with pytest.raises(RuntimeError, match="handler"):
            ws.recv(0)
        with pytest.raises(RuntimeError, match="handler"):
            next(iter(ws))


def test_a_recv_that_waits_when_a_handler_is_set_does_not_wait_for_ever(echo: str) -> None:
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with WebSocket(echo) as ws:
        result = in_thread(ws.recv)
        with pytest.raises(WaitTimeout):
            ws.wait_closed(0.05)
        ws.onmessage = heard.put
        ws.send("x")
        outcome = result.get(timeout=1)
        assert outcome == "x" or (isinstance(outcome, RuntimeError) and heard.get(timeout=LIMIT) == "x")


def test_iteration_ends_quietly_after_a_clean_close() -> None:
    with opening(burst) as ws:
        assert list(ws) == ["1", b"2"]
        assert list(ws) == []


def test_iteration_ends_quietly_after_our_own_close(echo: str) -> None:
    with WebSocket(echo) as ws:
        ws.send("x")
        for message in ws:
            assert message == "x"
            ws.close()


@pytest.mark.parametrize(("after", "error"), [(b"", ConnectionLost), (b"\xff\xff", ProtocolError)])
def test_iteration_raises_when_the_end_is_not_clean(after: bytes, error: type[Exception]) -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=text("1") + after)
        if after:
            peer.read_until_close()

    received = []
    with opening(script) as ws:
        with pytest.raises(error):
            received.extend(ws)
        messages = iter(ws)
        with pytest.raises(error):
            next(messages)


# --- ping


def test_ping_and_latency(echo: str) -> None:
    with WebSocket(echo) as ws:
        assert ws.latency is None
        latency = ws.ping()
        assert 0 < latency < LIMIT
        assert ws.latency == latency
        assert ws.ping(LIMIT) == ws.latency


def test_a_later_pong_answers_the_earlier_pings() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_frame()
        peer.send(pong(b"unsolicited") + pong(peer.read_frame().payload))
        peer.stall()

    with opened(script) as ws:
        first, second = in_thread(ws.ping), in_thread(ws.ping)
        assert 0 < first.get(timeout=LIMIT) < LIMIT
        assert 0 < second.get(timeout=LIMIT) < LIMIT


def test_ping_needs_an_open_connection(echo: str) -> None:
    with RawServer(never_answer) as server:
        ws = WebSocket(server.url)
        with pytest.raises(InvalidStateError):
            ws.ping()
        ws.close()
        with pytest.raises(ConnectionClosed):
            ws.ping()
        ws.wait_closed(LIMIT)
        with pytest.raises(ConnectionClosed):
            ws.ping()


def test_ping_works_in_a_callback(echo: str) -> None:
    result: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with WebSocket(echo) as ws:
        ws.onopen = lambda: result.put(ws.ping(LIMIT))
        assert result.get(timeout=LIMIT) > 0


# --- Where waiting would be waiting for oneself


def what_it_raises(function: Callable[[], object]) -> Exception | None:
    try:
        function()
    except Exception as error:
        return error
    return None


def test_wait_closed_in_an_own_callback_raises_at_once(echo: str) -> None:
    result: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with WebSocket(echo) as ws:
        ws.onopen = lambda: result.put(what_it_raises(ws.wait_closed))
        assert isinstance(result.get(timeout=LIMIT), RuntimeError)


def test_wait_closed_in_a_callback_of_another_socket(echo: str) -> None:
    result: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with WebSocket(echo) as ws, WebSocket(echo) as other:
        other.close()
        ws.onopen = lambda: result.put(other.wait_closed(LIMIT).wasClean)
        assert result.get(timeout=LIMIT) is True


@pytest.mark.parametrize("wait", OPEN_WAITS.values(), ids=OPEN_WAITS)
@pytest.mark.parametrize("own", [True, False], ids=["own", "other"])
def test_nothing_waits_on_the_loop_thread(
    echo: str, wait: Callable[[WebSocket, float], object], own: bool
) -> None:
    result: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with WebSocket(echo, callbacks="loop") as ws, WebSocket(echo) as other:
        ws.onopen = lambda: result.put(what_it_raises(lambda: wait(ws if own else other, LIMIT)))
        error = result.get(timeout=LIMIT)
    assert isinstance(error, RuntimeError)
    assert "loop thread" in str(error)


def test_wait_open_of_another_socket_does_not_wait_on_the_loop_thread(echo: str) -> None:
    result: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with RawServer(never_answer) as server, WebSocket(echo, callbacks="loop") as ws:
        other = WebSocket(server.url)
        ws.onopen = lambda: result.put(what_it_raises(lambda: other.wait_open(LIMIT)))
        assert isinstance(result.get(timeout=LIMIT), RuntimeError)
        other.close()
        other.wait_closed(LIMIT)


def test_with_in_a_callback_on_the_loop_thread_does_not_wait(echo: str) -> None:
    result: queue.SimpleQueue[Any] = queue.SimpleQueue()
    ws = WebSocket(echo, callbacks="loop")

    def onopen() -> None:
        with ws:
            ws.send("x")
        result.put(ws.readyState)

    ws.onopen = onopen
    assert result.get(timeout=LIMIT) == WebSocket.CLOSING
    assert ws.wait_closed(LIMIT).wasClean


# --- send at write_limit


def test_a_send_that_waits_at_write_limit_is_released_by_the_close() -> None:
    with opened(fall_silent, write_limit=1) as ws:
        blocked = in_thread(lambda: [ws.send(bytes(1 << 20)) for _ in range(64)])
        while ws.bufferedAmount == 0:
            assert ws.readyState == WebSocket.OPEN
        with pytest.raises(queue.Empty):
            blocked.get(timeout=0.1)
        ws.close()
        error = blocked.get(timeout=1)
        assert isinstance(error, ConnectionClosed)


def test_a_send_that_waits_at_write_limit_goes_on_when_the_peer_reads() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        may_go_on.wait(LIMIT)
        sizes.extend(len(frame.payload) for frame in peer.read_until_close()[:-1])
        peer.send(close_frame(1000))

    sizes: list[int] = []
    may_go_on = threading.Event()
    with RawServer(script) as server, WebSocket(server.url, write_limit=1000) as ws:
        done = in_thread(lambda: [ws.send(bytes(1 << 20)) for _ in range(16)])
        with pytest.raises(queue.Empty):
            done.get(timeout=0.1)
        assert ws.bufferedAmount <= 1000 + (1 << 20)
        may_go_on.set()
        assert done.get(timeout=LIMIT) == [None] * 16
    assert sizes == [1 << 20] * 16
    assert ws.bufferedAmount == 0


# --- with, connect


def test_with_waits_closes_and_waits(echo: str) -> None:
    with WebSocket(echo) as ws:
        assert ws.readyState == WebSocket.OPEN
        ws.send("x")
        assert ws.recv(LIMIT) == "x"
    assert ws.readyState == WebSocket.CLOSED
    assert ws.wait_closed(0).wasClean


def test_with_lets_errors_through_and_still_closes(echo: str) -> None:
    with pytest.raises(ZeroDivisionError), WebSocket(echo) as ws:
        raise ZeroDivisionError
    assert ws.readyState == WebSocket.CLOSED


def test_with_raises_what_went_wrong_when_opening() -> None:
    with RawServer(lambda peer: peer.send(peer.request[:0] + b"HTTP/1.1 401 No\r\n\r\n")) as server:
        ws = WebSocket(server.url)
        with pytest.raises(HandshakeError, match="401"), ws:
            pytest.fail("it is not open")


def test_with_around_a_closed_socket_is_harmless(echo: str) -> None:
    with WebSocket(echo) as ws:
        ws.close()
        ws.wait_closed(LIMIT)


def test_connect_is_open(echo: str) -> None:
    with connect(echo, compression=None) as ws:
        assert ws.readyState == WebSocket.OPEN
        assert ws.extensions == ""


def test_connect_to_a_server_that_speaks_and_closes_at_once() -> None:
    with RawServer(burst) as server:
        for _ in range(20):
            with connect(server.url) as ws:
                assert list(ws) == ["1", b"2"]


def test_with_around_a_server_that_speaks_and_closes_at_once() -> None:
    with RawServer(burst) as server:
        for _ in range(20):
            with WebSocket(server.url) as ws:
                assert list(ws) == ["1", b"2"]


def test_connect_raises_what_went_wrong() -> None:
    with RawServer(never_answer) as server, pytest.raises(OpenTimeout):
        connect(server.url, open_timeout=0.1)


# --- open_sockets, close_all


def test_open_sockets_and_close_all(echo: str) -> None:
    assert open_sockets() == []
    sockets = [connect(echo) for _ in range(3)]
    assert open_sockets() == sockets
    sockets[1].close()
    sockets[1].wait_closed(LIMIT)
    assert open_sockets() == [sockets[0], sockets[2]]
    assert close_all(3000, "again") == [sockets[0], sockets[2]]
    events = [ws.wait_closed(LIMIT) for ws in sockets]
    assert [(event.code, event.reason) for event in events] == [(3000, "again"), (1005, ""), (3000, "again")]
    assert open_sockets() == []
    assert close_all() == []


def test_close_all_with_a_bad_code_closes_nothing(echo: str) -> None:
    with WebSocket(echo) as ws:
        with pytest.raises(ValueError, match="1001"):
            close_all(1001)
        assert open_sockets() == [ws]


def test_close_all_gives_up_what_is_still_connecting() -> None:
    with RawServer(never_answer) as server:
        ws = WebSocket(server.url)
        assert open_sockets() == [ws]
        assert close_all() == [ws]
        assert ws.wait_closed(1).code == 1006


def test_a_socket_that_nobody_holds_is_closed_with_a_warning(echo: str) -> None:
    sockets = [connect(echo)]
    with pytest.warns(ResourceWarning, match="without close"):
        sockets.clear()
    assert open_sockets() == []


def test_a_socket_with_a_handler_lives_until_it_is_closed(echo: str) -> None:
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    connect(echo).onmessage = heard.put
    garbage.collect()
    (ws,) = open_sockets()
    ws.send("x")
    assert heard.get(timeout=LIMIT) == "x"
    ws.close()
    ws.wait_closed(LIMIT)


# --- repr, stats, response


class Chat(WebSocket):
    pass


def test_repr_tells_state_url_and_counts(echo: str) -> None:
    ws = Chat(echo + "path?query=1")
    assert repr(ws).startswith("<Chat ")
    with ws:
        ws.send("x")
        ws.recv(LIMIT)
        for part in ("OPEN", echo + "path?...", "sent 1", "received 1"):
            assert part in repr(ws)
    assert "CLOSED" in repr(ws)
    assert "1005" in repr(ws)


def test_repr_hides_the_password(echo: str) -> None:
    with WebSocket(echo.replace("://", "://user:secret@")) as ws:
        assert "secret" not in repr(ws)
        assert "secret" not in ws.url


def test_repr_of_a_socket_that_was_never_opened() -> None:
    with pytest.raises(ValueError, match=r"scheme|URL|url"):
        Chat("ftp://localhost/")
    assert "never opened" in repr(Chat.__new__(Chat))


def test_stats_count_messages_and_bytes() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_frame()
        peer.send(text("1") + text("22") + close_frame(1000))
        peer.read_until_close()

    with opened(script, compression=None) as ws:
        before = ws.stats
        assert (before.messages_sent, before.messages_received, before.inbox) == (0, 0, 0)
        ws.send("x" * 10)
        ws.wait_closed(LIMIT)
        after = ws.stats
        assert isinstance(after, Stats)
        assert (after.messages_sent, after.messages_received, after.inbox) == (1, 2, 2)
        # Frames of 2 + 4 + 10 and 2 + 4 + 2 bytes out; 2 + 1, 2 + 2 and 2 + 2 bytes in (RFC 6455 section 5.2).
        assert after.bytes_sent - before.bytes_sent == 16 + 8
        assert after.bytes_received - before.bytes_received == 3 + 4 + 4
        assert before.bytes_sent > 100  # the handshake
        assert before.bytes_received > 100
        ws.recv(0)
        assert ws.stats.inbox == 1


def test_response_tells_the_handshake(echo: str) -> None:
    with RawServer(lambda peer: (peer.accept([("X-Node", "7")]), peer.stall())) as server:
        ws = WebSocket(server.url, close_timeout=0.1)
        ws.wait_open(LIMIT)
        assert ws.response is not None
        assert ws.response.status == 101
        assert ("x-node", "7") in [(name.lower(), value) for name, value in ws.response.headers]
        ws.close()
        ws.wait_closed(LIMIT)


def test_protocol_and_extensions() -> None:
    with echo_server(subprotocols=["chat"]) as server:
        ws = WebSocket(server.url, ["other", "chat"])
        with ws:
            assert ws.protocol == "chat"
            assert "permessage-deflate" in ws.extensions


def test_a_socket_that_is_just_being_made_does_not_disturb_who_waits() -> None:
    """Who has waited for a moment looks at the locks of all sockets, and other threads may be making one."""
    looks = []

    def look(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is Bridge.__init__.__code__:
            looks.append(frame.f_lineno)
            waiting_module._check_locks()
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        Bridge(Options(), Trace())
    finally:
        sys.settrace(before)
    assert looks


class Rejoined(list[threading.Lock]):
    """Waiters that wait again as soon as they are woken, before anybody else goes on."""

    woken = 0

    def pop(self, index: Any = -1) -> threading.Lock:
        self.woken += 1
        waiter = super().pop(index)
        waiting_module.enlist(self)
        return waiter


class Asking(QueryMixin, WebSocket):
    pass


def test_who_waits_again_at_once_is_woken_once() -> None:
    waiters = Rejoined()
    first = [waiting_module.enlist(waiters) for _ in range(3)]
    waiting_module.release(waiters)
    assert waiters.woken == 3
    assert not any(waiter.locked() for waiter in first)
    assert len(waiters) == 3


def test_a_query_that_waits_again_at_once_does_not_hold_up_the_loop(echo: str) -> None:
    """It does when messages wait for others, so that it may not read itself."""
    with Asking(echo) as ws:
        query = ws.query({"x": 1})
        assert query.result(LIMIT)
        sleepers = Rejoined()
        waiting_module.enlist(sleepers)
        vars(query)["_sleepers"] = sleepers
        query.look_again()
        assert sleepers.woken == 1
