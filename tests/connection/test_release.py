"""What has ended is let go of: no socket, with all that it holds, outlives its user and its connection."""

from __future__ import annotations

import time
import tracemalloc
import weakref
from typing import Any

import garbage
import pytest
from peers import LIMIT, RawServer, refusing_address
from until import until

from nwebsocket import ConnectionClosed, ConnectionFailed, QueryMixin, WebSocket


def is_gone(reference: weakref.ref[Any]) -> bool:
    """Whether that goes within a second, in which the log may still wait for a handler."""
    deadline = time.monotonic() + 1
    while reference() is not None and time.monotonic() < deadline:
        garbage.collect()
        time.sleep(0.01)
    return reference() is None


def fail_to_open() -> weakref.ref[Any]:
    """The traceback of what is raised holds this frame, and with it the socket."""
    with refusing_address() as (host, port):
        ws = WebSocket(f"ws://{host}:{port}/")
        with pytest.raises(ConnectionFailed) as caught:
            ws.wait_open(LIMIT)
    del caught
    ws.wait_closed(LIMIT)
    return weakref.ref(ws)


def fail_within_init() -> weakref.ref[Any]:
    """The events wait for the end of __init__, and a timer looks whether that takes long."""

    class Slow(WebSocket):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            with pytest.raises(ConnectionFailed) as caught:
                self.wait_open(LIMIT)
            del caught
            until(lambda: self._nwebsocket.callbacks.owner._waits_told)

    with refusing_address() as (host, port):
        ws = Slow(f"ws://{host}:{port}/")
    ws.wait_closed(LIMIT)
    return weakref.ref(ws)


def be_cut() -> weakref.ref[Any]:
    with RawServer(lambda peer: peer.accept()) as server:
        ws = WebSocket(server.url).wait_open(LIMIT)
        for use in (ws.recv, lambda: ws.send("x"), ws.recv):
            with pytest.raises(ConnectionClosed) as caught:
                use()
        del caught, use
    ws.wait_closed(LIMIT)
    return weakref.ref(ws)


@pytest.mark.parametrize("end", [fail_to_open, fail_within_init, be_cut])
def test_a_socket_whose_error_was_raised_is_let_go_of(end: Any) -> None:
    assert is_gone(end())


class Querying(QueryMixin, WebSocket):
    """A WebSocket that queries."""


def query_and_close(url: str) -> weakref.ref[Any]:
    with Querying(url) as ws:
        assert ws.query({"question": 1}, timeout=3600).result(LIMIT)
    return weakref.ref(ws._nwebsocket.bridge)


def test_the_timeout_of_a_query_holds_nothing(echo: str) -> None:
    assert is_gone(query_and_close(echo))


def test_a_closed_socket_keeps_no_buffers_of_compression(echo: str) -> None:
    """They take 200 KiB, and the garbage collector knows nothing of their size."""
    with WebSocket(echo) as first:
        first.ping()
    kept = []
    tracemalloc.start()
    try:
        for _ in range(5):
            with WebSocket(echo) as ws:
                assert ws.extensions
                ws.send("hello " * 20)
                assert ws.recv(LIMIT) == "hello " * 20
            kept.append(ws)
        memory, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert memory / len(kept) < 128 * 1024, memory
