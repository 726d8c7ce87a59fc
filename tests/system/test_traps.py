"""wsproto's traps that concern more than the protocol's own file; the others are in test_protocol and test_deflate."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from peers import LIMIT, Peer, RawServer

from nwebsocket import InvalidClose, WebSocket
from nwebsocket._protocol.connection import Protocol


def test_trap_5_the_protocol_is_used_by_the_loop_thread_alone(echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """wsproto may not be used by two threads at once, and every user thread may send."""
    threads: set[str] = set()

    def watched(name: str) -> Any:
        method = getattr(Protocol, name)

        def call(self: Protocol, *args: Any, **kwargs: Any) -> Any:
            threads.add(threading.current_thread().name)
            return method(self, *args, **kwargs)

        return call

    # Not handshake(): the request may be made before the loop thread has heard of the connection.
    for name in ("receive_response", "receive", "message", "ping", "close"):
        monkeypatch.setattr(Protocol, name, watched(name))
    with WebSocket(echo) as ws:
        senders = [threading.Thread(target=ws.send, args=(str(number),)) for number in range(8)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert {ws.recv(LIMIT) for _ in senders} == set("01234567")
        ws.ping(LIMIT)
    assert threads == {"nwebsocket-loop"}


@pytest.mark.parametrize(("code", "reason"), [(1005, ""), (1006, ""), (1015, ""), (1000, "x" * 124), (3000, "é" * 62)])
def test_trap_8_reserved_codes_and_long_reasons_are_refused_not_changed(echo: str, code: int, reason: str) -> None:
    """wsproto turns such a code into 1000 and cuts such a reason, both in silence."""
    with WebSocket(echo) as ws:
        with pytest.raises(InvalidClose):
            ws.close(code, reason)
        ws.send("still open")
        assert ws.recv(LIMIT) == "still open"


@pytest.mark.parametrize(
    ("suffix", "target"),
    [
        ("?a=1&b=2", "/?a=1&b=2"),
        ("/päth/ü?q=ö x%20y", "/p%C3%A4th/%C3%BC?q=%C3%B6%20x%20y"),
        ("/a/../b?x=/../y", "/b?x=/../y"),
    ],
)
def test_trap_9_the_target_is_ascii_and_carries_the_query(suffix: str, target: str) -> None:
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        requests.put(peer.request)
        peer.accept()
        peer.read_until_close()

    with RawServer(script) as server, WebSocket(server.url.rstrip("/") + suffix):
        assert requests.get(timeout=LIMIT).startswith(f"GET {target} HTTP/1.1\r\n".encode("ascii"))


def test_trap_9_an_ipv6_host_is_in_brackets() -> None:
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        requests.put(peer.headers["host"])
        peer.accept()
        peer.read_until_close()

    try:
        server = RawServer(script, host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback address")
    with server, WebSocket(f"ws://[0:0::1]:{server.port}/"):
        assert requests.get(timeout=LIMIT) == f"[::1]:{server.port}"
