"""Messages are consumed in one place at a time: none is lost or overtaken when handlers and recv() take turns."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import garbage
import pytest
from peers import LIMIT, Peer, RawServer, text

from nwebsocket import WaitTimeout, WebSocket, open_sockets

COUNT = 3000


def flood(peer: Peer) -> None:
    """Numbered messages, then "end"."""
    peer.accept()
    for number in range(COUNT):
        peer.send(text(str(number)))
    peer.send(text("end"))
    peer.read_until_close()
    peer.close()


EXPECTED = [*map(str, range(COUNT)), "end"]


@pytest.mark.parametrize("callbacks", ["thread", "loop"])
@pytest.mark.parametrize("max_queue", [8, 65_536])
def test_nothing_is_lost_between_handlers_and_recv(callbacks: Any, max_queue: int) -> None:
    heard: list[Any] = []
    with RawServer(flood) as server:
        ws = WebSocket(server.url, compression=None, callbacks=callbacks, max_queue=max_queue)
        ws.wait_open(LIMIT)
        while "end" not in heard:
            ws.onmessage = heard.append
            ws.onmessage = None
            for _ in range(20):
                with contextlib.suppress(WaitTimeout):
                    heard.append(ws.recv(0.01))
                if heard and heard[-1] == "end":
                    break
        ws.close()
        ws.wait_closed(LIMIT)
    assert heard == EXPECTED


@pytest.mark.parametrize("callbacks", ["thread", "loop"])
@pytest.mark.parametrize("once", [False, True])
def test_nothing_is_lost_when_listeners_come_and_go(callbacks: Any, once: bool) -> None:
    heard: list[Any] = []
    over = threading.Event()

    def hear(event: Any) -> None:
        heard.append(event.data)
        if event.data == "end":
            over.set()

    with RawServer(flood) as server:
        ws = WebSocket(server.url, compression=None, callbacks=callbacks)
        for _ in range(2000):
            ws.addEventListener("message", hear, once=once)
            if over.is_set():
                break
            ws.removeEventListener("message", hear)
        ws.addEventListener("message", hear)
        assert over.wait(LIMIT)
        ws.close()
        ws.wait_closed(LIMIT)
    assert heard == EXPECTED


def test_recv_waits_while_a_handler_is_at_the_message_before() -> None:
    inside, go_on, heard = threading.Event(), threading.Event(), list[Any]()

    def slow(message: Any) -> None:
        inside.set()
        assert go_on.wait(LIMIT)
        heard.append(message)

    def two(peer: Peer) -> None:
        peer.accept()
        peer.send(text("one") + text("two"))
        peer.read_until_close()
        peer.close()

    with RawServer(two) as server:
        ws = WebSocket(server.url, compression=None)
        ws.onmessage = slow
        assert inside.wait(LIMIT)
        ws.onmessage = None
        with pytest.raises(WaitTimeout):
            ws.recv(0.05)
        go_on.set()
        heard.append(ws.recv(LIMIT))
        ws.close()
        ws.wait_closed(LIMIT)
    assert heard == ["one", "two"]


@pytest.mark.parametrize("event_type", ["open", "message", "close"])
def test_an_event_whose_only_listener_is_removed_before_the_call_waits(event_type: Any, monkeypatch: Any) -> None:
    from nwebsocket._connection.handlers import Handlers

    def one(peer: Peer) -> None:
        peer.accept()
        peer.send(text("one"))
        peer.read_until_close()
        peer.close()

    first, heard, removed = list[Any](), list[Any](), threading.Event()
    original: Callable[..., Any] = Handlers.hearers

    def removing(self: Any, kind: str) -> Any:
        if kind == event_type and not removed.is_set():
            removed.set()
            ws.removeEventListener(event_type, first.append)
        return original(self, kind)

    monkeypatch.setattr(Handlers, "hearers", removing)
    with RawServer(one) as server:
        ws = WebSocket(server.url, compression=None)
        listener = first.append
        ws.addEventListener(event_type, listener)
        if event_type == "close":
            ws.wait_open(LIMIT).close()
        assert removed.wait(LIMIT)
        again = threading.Event()
        ws.addEventListener(event_type, lambda event: (heard.append(event.type), again.set()))
        assert again.wait(LIMIT)
        ws.close()
        ws.wait_closed(LIMIT)
    assert first == []
    assert heard == [event_type]


def test_a_socket_whose_handler_is_set_while_a_listener_goes_is_kept_alive(monkeypatch: Any) -> None:
    from nwebsocket._connection.handlers import Handlers

    def stay(peer: Peer) -> None:
        peer.accept()
        peer.read_until_close()
        peer.close()

    original, looked = Handlers.hear_anything, threading.Event()
    set_now = threading.Event()

    def slow(self: Any) -> bool:
        found = original(self)
        if threading.current_thread().name == "nwebsocket-callbacks":
            looked.set()
            set_now.wait(LIMIT)
        return found

    with RawServer(stay) as server:
        ws: Any = WebSocket(server.url, compression=None)
        monkeypatch.setattr(Handlers, "hear_anything", slow)
        ws.addEventListener("open", lambda event: None, once=True)
        assert looked.wait(LIMIT)
        ws.onmessage = lambda message: None
        set_now.set()
        ws.wait_open(LIMIT)
        monkeypatch.undo()
        ws = None
        garbage.collect()
        (ws,) = open_sockets()
        ws.close()
        ws.wait_closed(LIMIT)
