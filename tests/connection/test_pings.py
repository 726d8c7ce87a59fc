"""Each Ping is answered before what came behind it, and handlers on the loop before a failure that they precede."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from peers import BINARY, CLOSE, LIMIT, PONG, TEXT, Peer, RawServer, close_frame, frame, ping, text
from until import until

from nwebsocket import ProtocolError, WebSocket
from nwebsocket._connection.callbacks import PAUSED
from nwebsocket._network.output import MAX_PONGS
from nwebsocket._network.transport import Transport


@pytest.mark.parametrize("callbacks", ["thread", "loop"])
def test_each_ping_has_its_pong_and_before_the_answer_to_what_came_behind(callbacks: Any) -> None:
    heard: list[tuple[int, bytes]] = []

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(b"".join(ping(b"%d" % number) for number in range(10)) + text("behind"))
        for _ in range(11):
            received = peer.read_frame()
            heard.append((received.opcode, received.payload))
        peer.send(close_frame(1000))
        peer.read_until_close()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks=callbacks)
        ws.onmessage = ws.send
        ws.wait_closed(LIMIT)
    assert heard == [*((PONG, b"%d" % number) for number in range(10)), (TEXT, b"behind")]


def test_recv_hears_nothing_that_came_behind_a_ping_before_its_pong_is_on_its_way() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        for _ in range(50):
            peer.send(ping(b"first") + text("second"))
            assert [peer.read_frame().opcode for _ in range(2)] == [PONG, TEXT]
        peer.send(close_frame(1000))
        peer.read_until_close()

    with RawServer(script) as server, WebSocket(server.url, compression=None) as ws:
        for message in ws:
            ws.send(message)


def test_a_server_that_pings_and_does_not_read_is_answered_from_a_bound_on_with_the_latest() -> None:
    class Stuck:
        """A socket that takes nothing."""

        def setblocking(self, _: bool) -> None: ...
        def fileno(self) -> int:
            return 0

        def send(self, _: Any) -> int:
            raise BlockingIOError

    transport = Transport(Stuck())  # type: ignore[arg-type]
    pongs = [b"%010d" % number for number in range(20_000)]
    for start in range(0, len(pongs), 100):
        transport.send_pongs(pongs[start : start + 100])
        transport.flush()
        assert transport.unsent <= 2 * MAX_PONGS + len(pongs[0])


def test_what_a_handler_on_the_loop_has_sent_goes_out_before_the_failures_close_frame() -> None:
    received: list[int] = []

    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_frame()  # the handlers are set
        peer.send(text("hello") + frame(BINARY, b"bad", rsv=2))
        received.extend(each.opcode for each in peer.read_until_close())
        peer.read_eof()

    failed = threading.Event()
    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks="loop", compression=None)
        errors: list[Any] = []
        ws.onerror = lambda error: (errors.append(error), failed.set())
        ws.onmessage = ws.send
        ws.wait_open(LIMIT).send("go")
        assert failed.wait(LIMIT)
        ws.wait_closed(LIMIT)
    assert isinstance(errors[0], ProtocolError)
    assert received == [TEXT, CLOSE]


def test_also_when_the_handler_is_set_a_line_after_the_constructor() -> None:
    received: list[int] = []

    def script(peer: Peer) -> None:
        peer.accept(after=text("hello") + frame(BINARY, b"bad", rsv=2))
        received.extend(each.opcode for each in peer.read_until_close())
        peer.read_eof()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks="loop", compression=None)
        until(lambda: ws.stats.inbox)  # the failure is behind that
        ws.onmessage = ws.send
        ws.onerror = lambda error: None
        ws.wait_closed(LIMIT)
    assert received == [TEXT, CLOSE]


@pytest.mark.parametrize("consumer", ["nobody", "recv"])
def test_a_failure_waits_for_a_handler_on_the_loop_a_moment_only(consumer: str) -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=text("hello") + frame(BINARY, b"bad", rsv=2))
        assert [each.opcode for each in peer.read_until_close()] == [CLOSE]
        peer.read_eof()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks="loop", compression=None)
        ws.onerror = lambda error: None
        if consumer == "recv":
            assert ws.recv(LIMIT) == "hello"
        ws.wait_closed(LIMIT)
        assert ws.readyState == ws.CLOSED


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_also_when_the_operating_system_does_not_take_it_at_once(compression: Any) -> None:
    answer = random.Random(1).randbytes(16 * 2**20)
    received: list[tuple[int, int]] = []
    answered, read = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.accept(extensions="permessage-deflate" if compression else None)
        peer.read_frame()  # the handlers are set
        peer.send(text("hello") + frame(BINARY, b"bad", rsv=2))
        assert answered.wait(LIMIT)
        received.extend((each.opcode, len(each.payload)) for each in peer.read_until_close())
        peer.read_eof()
        read.set()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks="loop", compression=compression, write_limit=2**26)

        def onmessage(_: object) -> None:
            ws.send(answer)
            assert ws.bufferedAmount
            answered.set()

        errors: list[Any] = []
        ws.onerror = errors.append
        ws.onmessage = onmessage
        ws.wait_open(LIMIT).send("go")
        ws.wait_closed(LIMIT)
        assert read.wait(LIMIT)  # which may be after that: all has been given to the operating system
    assert isinstance(errors[0], ProtocolError)
    assert [opcode for opcode, _ in received] == [BINARY, CLOSE]
    assert received[0][1] >= len(answer)


def test_what_a_server_that_failed_does_not_read_holds_up_the_end_for_a_moment_only() -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_frame()
        peer.send(text("hello") + frame(BINARY, b"bad", rsv=2))
        assert over.wait(LIMIT)

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks="loop", compression=None, write_limit=2**26, close_timeout=0.3)
        errors: list[Any] = []
        ws.onerror = errors.append
        ws.onmessage = lambda _: ws.send(bytes(16 * 2**20))
        ws.wait_open(LIMIT).send("go")
        ws.wait_closed(LIMIT)
        over.set()
    assert isinstance(errors[0], ProtocolError)


@pytest.mark.parametrize("to_itself", [False, True])
@pytest.mark.parametrize("kind", ["handler", "listener", "handler set late"])
def test_handlers_on_the_loop_hear_no_more_while_they_have_sent_too_much(kind: str, to_itself: bool) -> None:
    """Though one read holds thousands of messages, and each makes them send ten thousand times as much."""
    go_on, over = threading.Event(), threading.Event()
    size, count = 10_000, 3000

    def source(peer: Peer) -> None:
        peer.accept()
        peer.send(b"".join(text(str(number)) for number in range(count)))
        if to_itself:
            take(peer)
        peer.read_until_close()
        peer.close()

    def sink(peer: Peer) -> None:
        peer.accept()
        take(peer)
        peer.read_until_close()
        peer.close()

    def take(peer: Peer) -> None:
        assert go_on.wait(LIMIT)
        for number in range(count):
            assert peer.read_frame().payload.rstrip(b".") == str(number).encode()
        over.set()

    with RawServer(source) as first, RawServer(sink) as second:
        feed = WebSocket(first.url, compression=None, callbacks="loop", write_limit=2**20)
        to = feed if to_itself else WebSocket(second.url, compression=None, write_limit=2**20)
        to.wait_open(LIMIT)
        most = [0]

        def relay(message: Any) -> None:
            to.send((message if isinstance(message, str) else message.data).ljust(size, "."))
            most[0] = max(most[0], to.bufferedAmount)

        if kind == "handler set late":
            until(lambda: feed.stats.inbox == count)
        if kind == "listener":
            feed.addEventListener("message", relay)
        else:
            feed.onmessage = relay
        until(lambda: feed._nwebsocket.callbacks._run is PAUSED)
        go_on.set()
        assert over.wait(LIMIT)
        for ws in {feed, to}:
            ws.close()
            ws.wait_closed(LIMIT)
    assert most[0] <= 2**20 + 2 * size


def test_a_handler_on_the_loop_that_sends_too_much_to_another_socket_is_not_fed() -> None:
    """Its own connection is not read until the other one has written."""
    go_on, over = threading.Event(), threading.Event()
    size, count = 64 * 1024, 400

    def source(peer: Peer) -> None:
        peer.accept()
        for _ in range(count):
            peer.send(frame(BINARY, bytes(size)))
        peer.read_until_close()
        peer.close()

    def sink(peer: Peer) -> None:
        peer.accept()
        assert go_on.wait(LIMIT)
        for _ in range(count):
            assert len(peer.read_frame().payload) == size
        over.set()
        peer.read_until_close()
        peer.close()

    with RawServer(source) as first, RawServer(sink) as second:
        to = WebSocket(second.url, compression=None, write_limit=2**20).wait_open(LIMIT)
        feed = WebSocket(first.url, compression=None, callbacks="loop")
        most = [0]

        def relay(message: bytes) -> None:
            to.send(message)
            most[0] = max(most[0], to.bufferedAmount)

        feed.onmessage = relay
        feed.wait_open(LIMIT)
        bridge = feed._nwebsocket.bridge
        until(lambda: bridge.intake.waits_for_room)
        go_on.set()
        assert over.wait(LIMIT)
        for ws in (feed, to):
            ws.close()
            ws.wait_closed(LIMIT)
    assert most[0] < 2**21
