"""The request that is sent before the loop thread knows of its connection; nobody can tell but by the time."""

from __future__ import annotations

import queue
import socket
import sys
import threading
from collections.abc import Iterator
from http.cookiejar import CookieJar

import pytest
from peers import Peer, RawServer, close_frame, text

from nwebsocket import ConnectionLost, WebSocket, connect
from nwebsocket._threads import the_loop

LIMIT = 10.0  # seconds: more than anything here takes

at_once = pytest.mark.skipif(sys.platform != "linux", reason="counts on how fast Linux connects")


@pytest.fixture
def loop_at_rest() -> Iterator[threading.Event]:
    """The loop thread does nothing until the event is set."""
    resting, go_on = threading.Event(), threading.Event()

    def rest() -> None:
        resting.set()
        go_on.wait(LIMIT)

    the_loop.current().call_later(0, rest)
    assert resting.wait(LIMIT)
    yield go_on
    go_on.set()


class Asked:
    """A server's script: hands each request over, and accepts it."""

    def __init__(self) -> None:
        self.requests: queue.Queue[tuple[str, dict[str, str]]] = queue.Queue()

    def __call__(self, peer: Peer) -> None:
        self.requests.put((peer.path, peer.headers))
        peer.accept([("Set-Cookie", "seen=1")], after=text("hello"))
        peer.read_until_close()
        peer.send(close_frame(1000))


@at_once
def test_the_server_has_it_before_the_loop_thread_is_awake(loop_at_rest: threading.Event) -> None:
    asked, jar = Asked(), CookieJar()
    with RawServer(asked) as server:
        url = f"ws://me:secret@127.0.0.1:{server.port}/feed?n=1"
        ws = WebSocket(url, headers={"X-Y": "z"}, origin="http://here", cookies=jar)
        path, headers = asked.requests.get(timeout=LIMIT)
        assert (path, headers["x-y"], headers["origin"]) == ("/feed?n=1", "z", "http://here")
        assert headers["authorization"] == "Basic bWU6c2VjcmV0"
        assert ws.readyState == WebSocket.CONNECTING
        loop_at_rest.set()
        with ws:
            assert ws.recv(LIMIT) == "hello"
            assert [cookie.name for cookie in jar] == ["seen"]
            # 127.0.0.1 has no more than the one connection, and the one request counts.
            assert asked.requests.empty()
            assert ws.stats.bytes_sent > len(path) + sum(map(len, headers.values()))


@at_once
def test_a_reset_before_the_loop_thread_is_awake_loses_nothing_that_came_before(loop_at_rest: threading.Event) -> None:
    reset = threading.Event()

    def script(peer: Peer) -> None:
        peer.accept(after=text("hello"))
        peer.reset()
        reset.set()

    with RawServer(script) as server:
        ws = WebSocket(server.url)
        assert reset.wait(LIMIT)
        loop_at_rest.set()
        assert ws.wait_open(LIMIT).recv(LIMIT) == "hello"
        with pytest.raises(ConnectionLost, match="the connection was lost: Connection reset by peer"):
            ws.recv(LIMIT)


@at_once
def test_closed_before_the_loop_thread_is_awake(loop_at_rest: threading.Event) -> None:
    left = threading.Event()

    def script(peer: Peer) -> None:
        assert peer.request
        try:
            peer.read(1)
        except EOFError:
            left.set()

    with RawServer(script) as server:
        ws = WebSocket(server.url)
        ws.close()
        loop_at_rest.set()
        ws.wait_closed(LIMIT)
        assert left.wait(LIMIT)


@pytest.mark.parametrize("taken", [0, 1, 100])
def test_what_the_socket_did_not_take_follows(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to be had from a real socket, whose buffer is empty: it takes less, or says that it would block."""
    send = socket.socket.send

    class Full(socket.socket):
        def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
            if threading.current_thread() is not threading.main_thread():
                return send(self, data, flags)
            if not taken:
                raise BlockingIOError
            return send(self, data[:taken], flags)

    monkeypatch.setattr(socket, "socket", Full)
    asked = Asked()
    with RawServer(asked) as server, connect(server.url, compression=None) as ws:
        ws.close()
        ws.wait_closed(LIMIT)
        path, headers = asked.requests.get_nowait()
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        assert ws.stats.bytes_sent == len("\r\n".join(lines)) + 6

