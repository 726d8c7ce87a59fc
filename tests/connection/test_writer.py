"""The way out of an open connection: who writes, how often, in which order, and what happens when it cannot be written.

Real servers only; what they have received is looked at after the closing handshake, which comes after it.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest
from peers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    LIMIT,
    PING,
    PONG,
    TEXT,
    Authority,
    Frame,
    Peer,
    RawServer,
    close_frame,
    ping,
    pong,
    text,
)

from nwebsocket import ConnectionClosed, ReconnectingWebSocket, WaitTimeout, WebSocket
from nwebsocket._connection import sender
from nwebsocket._connection.intake import Intake
from nwebsocket._network.transport import Transport
from nwebsocket._protocol import fast_lane as fast_lane_module
from nwebsocket._protocol.connection import Protocol
from nwebsocket._protocol.received import Received
from nwebsocket._threads import the_loop

THREADS, EACH = 8, 500
MUCH = 64 * 1024  # bytes; the sender writes a message of that size itself
BOTH = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])


class Collector:
    """A server's script: all data frames end up in `frames`, pings are answered, and so is the Close frame.

    ``may_read``     no further frame is read while it is not set
    ``heard_last``   the message "the last" has come
    """

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.pongs: list[bytes] = []
        self.may_read = threading.Event()
        self.may_read.set()
        self.heard_last = threading.Event()

    def __call__(self, peer: Peer) -> None:
        self.accept(peer)
        while (frame := self.next_frame(peer)).opcode != CLOSE:
            self.heard(peer, frame)
        peer.send(close_frame(1000))

    def accept(self, peer: Peer) -> None:
        peer.accept()

    def next_frame(self, peer: Peer) -> Frame:
        self.may_read.wait(LIMIT)
        return peer.read_frame()

    def heard(self, peer: Peer, frame: Frame) -> None:
        assert frame.rsv == 0
        assert frame.opcode in (CONTINUATION, TEXT, BINARY, PING, PONG)
        if frame.opcode == PING:
            peer.send(pong(frame.payload))
        elif frame.opcode == PONG:
            self.pongs.append(frame.payload)
        else:
            self.frames.append(frame)
            if frame.payload == b"the last":
                self.heard_last.set()

    @property
    def payloads(self) -> list[bytes]:
        return [frame.payload for frame in self.frames]

    def numbers(self, sender: int) -> list[int]:
        """The numbers of the messages "sender:number" of one sender, as they came."""
        pairs = [payload.split(b":") for payload in self.payloads]
        return [int(number) for name, number in pairs if int(name) == sender]


class Flushes:
    """Notes, for each write that the operating system took something of, the thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[threading.Thread] = []
        flush = Transport.flush

        def noting(transport: Transport, *batch: Any) -> bool:
            sent = transport.sent
            try:
                return flush(transport, *batch)
            finally:
                if transport.sent > sent:
                    self.threads.append(threading.current_thread())

        monkeypatch.setattr(Transport, "flush", noting)

    def names(self) -> set[str]:
        return {thread.name for thread in self.threads}


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def tls() -> bool:
    return False


@pytest.fixture
def server(collector: Collector, ca: Authority, tls: bool) -> Iterator[RawServer]:
    with RawServer(collector, ssl=ca.server() if tls else None) as server:
        yield server


@pytest.fixture
def ws(server: RawServer, ca: Authority, tls: bool, any_thread: None) -> Iterator[WebSocket]:
    """A connection that may be written to by any thread, with all the room there is for waiting messages."""
    with connected(server, ca, tls) as ws:
        yield ws


def connected(
    server: RawServer, ca: Authority, tls: bool, callbacks: Any = "thread", write_limit: int = 2**28
) -> WebSocket:
    context = ca.client() if tls else None
    ws = WebSocket(server.url, ssl=context, compression=None, write_limit=write_limit, callbacks=callbacks)
    return ws.wait_open(LIMIT)


@pytest.fixture
def any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says of the fast lane."""
    use_fast_lane(monkeypatch, True)


def use_fast_lane(monkeypatch: pytest.MonkeyPatch, enabled: bool) -> None:
    monkeypatch.setitem(Protocol.__init__.__kwdefaults__, "fast_lane", enabled)


@pytest.fixture
def flushes(ws: WebSocket, monkeypatch: pytest.MonkeyPatch) -> Flushes:
    return Flushes(monkeypatch)


@pytest.fixture
def restless() -> Iterator[None]:
    """The threads take turns fifty times as often as by default."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(interval)


def pause() -> None:
    """Let so much time pass that the next message does not belong to a burst."""
    time.sleep(0.001)


def close(ws: WebSocket) -> None:
    ws.close()
    assert ws.wait_closed(LIMIT).wasClean


def send_until_stuck(ws: WebSocket, size: int = MUCH) -> list[bytes]:
    """Send until the operating system takes no more; return what was sent."""
    sent: list[bytes] = []
    writer = ws._nwebsocket.bridge.sender.writer
    assert writer is not None
    while not writer.stuck:
        assert len(sent) * size < 2**27, "the operating system takes everything"
        sent.append(b"%d:" % len(sent) + bytes(size))
        ws.send(sent[-1])
    return sent


def settle() -> None:
    """Have the loop thread finish what it is writing."""
    settled = threading.Event()
    the_loop.current().call_later(0, settled.set)
    assert settled.wait(LIMIT)


def in_threads(functions: Iterable[Callable[[], object]]) -> list[threading.Thread]:
    """Run the functions in a thread each, and return these."""
    threads = [threading.Thread(target=function, name=f"sender {n}") for n, function in enumerate(functions)]
    for thread in threads:
        thread.start()
    return threads


def join(threads: Iterable[threading.Thread]) -> None:
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()


# --- Who writes, and how often


@BOTH
@pytest.mark.parametrize("data", ["x", b"x" * 5000, b"x" * MUCH], ids=["small", "large", "much"])
def test_after_a_pause_the_sender_writes(
    ws: WebSocket, flushes: Flushes, collector: Collector, data: str | bytes
) -> None:
    for _ in range(3):
        pause()
        ws.send(data)
        assert flushes.threads.pop() is threading.current_thread()
        assert not flushes.threads
        assert ws.bufferedAmount == 0
    (thread,) = in_threads([lambda: ws.send(data)])
    join([thread])
    assert flushes.threads == [thread]
    close(ws)
    assert collector.payloads == [data.encode() if isinstance(data, str) else data] * 4


@BOTH
def test_an_iterable_after_a_pause_is_written_by_the_sender(
    ws: WebSocket, flushes: Flushes, collector: Collector
) -> None:
    pause()
    ws.send(["frag", "", "ments"])
    pause()
    ws.send(iter([b"", b"x" * 5000]))
    assert flushes.threads == [threading.current_thread()] * 2
    close(ws)
    assert [(frame.fin, frame.opcode, frame.payload) for frame in collector.frames] == [
        (False, TEXT, b"frag"),
        (False, CONTINUATION, b""),
        (True, CONTINUATION, b"ments"),
        (False, BINARY, b""),
        (True, CONTINUATION, b"x" * 5000),
    ]


@BOTH
def test_a_burst_takes_few_writes_and_keeps_its_order(
    ws: WebSocket, flushes: Flushes, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_PAUSE", 0.01)  # seconds; a write on a busy machine takes longer than the real one
    pause()
    for number in range(1000):
        ws.send(f"0:{number}")
    close(ws)
    assert len(flushes.threads) < 500
    assert collector.numbers(0) == list(range(1000))


def test_who_waits_for_an_answer_writes_what_waits_before(
    any_thread: None, echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WebSocket(echo, compression=None).wait_open(LIMIT) as ws:
        flushes = Flushes(monkeypatch)
        for number in range(20):
            ws.send(f"{number} first")
            ws.send(f"{number} second")
            assert [ws.recv(LIMIT), ws.recv(LIMIT)] == [f"{number} first", f"{number} second"]
        assert threading.current_thread() in flushes.threads


def exchange_in_all_ways(ws: WebSocket) -> None:
    """Send after pauses and in bursts, from this thread and others, small and large, and receive the echoes."""
    messages = ["after a pause", *map(str, range(600)), "x" * MUCH, "y" * 2**20]
    pause()
    for message in messages:
        ws.send(message)
    assert [ws.recv(LIMIT) for _ in messages] == messages
    pause()
    join(in_threads([lambda: ws.send("another thread's")]))
    assert ws.recv(LIMIT) == "another thread's"


def test_without_the_fast_lane_only_the_loop_thread_writes(echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fast_lane(monkeypatch, False)
    with WebSocket(echo, compression=None).wait_open(LIMIT) as ws:
        flushes = Flushes(monkeypatch)
        exchange_in_all_ways(ws)
        assert flushes.names() == {"nwebsocket-loop"}


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_the_same_exchange_with_any_thread_writing(
    any_thread: None, echo: str, monkeypatch: pytest.MonkeyPatch, compression: Any
) -> None:
    with WebSocket(echo, compression=compression).wait_open(LIMIT) as ws:
        assert bool(ws.extensions) == bool(compression)
        flushes = Flushes(monkeypatch)
        exchange_in_all_ways(ws)
        assert flushes.names() > {threading.current_thread().name}


# --- Order, whoever writes


class Greeter(Collector):
    """Says "go" first."""

    def accept(self, peer: Peer) -> None:
        peer.accept(after=text("go"))


@pytest.mark.usefixtures("any_thread", "restless")
@BOTH
@pytest.mark.parametrize("callbacks", ["thread", "loop"])
def test_many_threads_and_a_handler_send_at_once(ca: Authority, tls: bool, callbacks: str) -> None:
    collector, handler_done = Greeter(), threading.Event()

    def send_all(sender: int) -> None:
        for number in range(EACH):
            ws.send(f"{sender}:{number}")

    def in_the_handler(_: object) -> None:
        send_all(THREADS)
        handler_done.set()

    with RawServer(collector, ssl=ca.server() if tls else None) as server, connected(server, ca, tls, callbacks) as ws:
        threads = in_threads(partial(send_all, sender) for sender in range(THREADS))
        ws.onmessage = in_the_handler
        join(threads)
        assert handler_done.wait(LIMIT)
        close(ws)
    assert ws.bufferedAmount == 0
    assert ws.stats.messages_sent == (THREADS + 1) * EACH
    assert len(collector.frames) == (THREADS + 1) * EACH
    assert all(collector.numbers(sender) == list(range(EACH)) for sender in range(THREADS + 1))


class Pinger(Collector):
    """Pings after every tenth message; `many` is set when 500 messages and some pongs have come."""

    def __init__(self) -> None:
        super().__init__()
        self.pings: list[bytes] = []
        self.many = threading.Event()

    def heard(self, peer: Peer, frame: Frame) -> None:
        super().heard(peer, frame)
        if frame.opcode == TEXT and len(self.frames) % 10 == 0:
            self.pings.append(b"%d" % len(self.frames))
            peer.send(ping(self.pings[-1]))
        if len(self.frames) >= 500 and len(self.pongs) >= 3:
            self.many.set()


@pytest.mark.usefixtures("any_thread", "restless")
@BOTH
def test_messages_pongs_and_a_close_from_another_thread(ca: Authority, tls: bool) -> None:
    collector, accepted = Pinger(), [0] * 4

    def send_until_closed(sender: int) -> None:
        with contextlib.suppress(ConnectionClosed):
            for number in itertools.count():
                ws.send(f"{sender}:{number}")
                accepted[sender] += 1

    with (
        RawServer(collector, ssl=ca.server() if tls else None) as server,
        connected(server, ca, tls, write_limit=2**16) as ws,
    ):
        threads = in_threads(partial(send_until_closed, sender) for sender in range(4))
        assert collector.many.wait(LIMIT)
        close(ws)
        join(threads)
    assert [collector.numbers(sender) for sender in range(4)] == [list(range(count)) for count in accepted]
    answered = set(collector.pongs)  # of several pings in one read the last may stand for all: RFC 6455 section 5.5.3
    assert collector.pongs == [payload for payload in collector.pings if payload in answered]


@BOTH
@pytest.mark.parametrize("last", [b"0:", bytes(MUCH), bytes(2**20)], ids=["small", "much", "more"])
def test_what_was_sent_before_close_arrives_before_the_close_frame(
    ws: WebSocket, collector: Collector, last: bytes
) -> None:
    sent = [b"%d" % number for number in range(300)] + [last]
    for message in sent:
        ws.send(message)
    close(ws)
    assert collector.payloads == sent


# --- close()


fast_lane = pytest.mark.skipif(not fast_lane_module.ENABLED, reason="only the loop thread asks wsproto for them")


@fast_lane
@BOTH
def test_close_is_written_by_who_calls_it(ws: WebSocket, flushes: Flushes) -> None:
    ws.close(3000, "bye")
    assert flushes.threads == [threading.current_thread()]
    assert ws.wait_closed(LIMIT).wasClean


@fast_lane
def test_close_before_the_time_to_look_for_it_is_written_by_the_loop_thread(
    ws: WebSocket, flushes: Flushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ws._nwebsocket.bridge, "loop_looks", False)
    close(ws)
    assert flushes.names() == {"nwebsocket-loop"}


class Asker(Collector):
    """Sends a ping when `may_ask` is set, and looks at what follows the client's Close frame."""

    def __init__(self) -> None:
        super().__init__()
        self.may_ask = threading.Event()
        self.after_close: bytes | None = None

    def __call__(self, peer: Peer) -> None:
        peer.accept()
        assert self.may_ask.wait(LIMIT)
        peer.send(ping(b"?"))
        self.frames = peer.read_until_close()
        peer.send(close_frame(1000))
        self.after_close = peer.read_eof()


@fast_lane
def test_no_pong_follows_a_close_frame(ca: Authority, any_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pong is ready, and waits for the wire, which close() has."""
    asker, answering = Asker(), threading.Event()
    answer = Intake._answer

    def noting(intake: Intake, received: Received) -> None:
        answering.set()
        answer(intake, received)

    monkeypatch.setattr(Intake, "_answer", noting)
    with RawServer(asker) as server:
        ws = connected(server, ca, False)
        with ws._nwebsocket.session._transport.wire:
            asker.may_ask.set()
            assert answering.wait(LIMIT)
            ws.close(1000)
        assert ws.wait_closed(LIMIT).wasClean
    assert ([frame.opcode for frame in asker.frames], asker.after_close) == ([CLOSE], b"")


# --- A peer that does not read


@BOTH
def test_a_peer_that_reads_again_gets_everything(ws: WebSocket, collector: Collector) -> None:
    collector.may_read.clear()
    sent = send_until_stuck(ws)
    for number in range(300):
        sent.append(b"%d" % number)
        ws.send(sent[-1])
    sent.append(b"the last")
    ws.send(sent[-1])
    assert 300 < ws.bufferedAmount <= sum(map(len, sent))
    collector.may_read.set()
    assert collector.heard_last.wait(LIMIT)
    assert collector.payloads == sent
    settle()
    assert ws.bufferedAmount == 0
    close(ws)


@BOTH
def test_a_large_message_on_its_way_is_followed_by_small_ones(ws: WebSocket, collector: Collector, tls: bool) -> None:
    collector.may_read.clear()
    sent = [b"\x5a" * (5 * 2**20 + 3), *(b"%d" % number for number in range(100))]
    for message in sent:
        ws.send(message)
        pause()
    collector.may_read.set()
    close(ws)
    assert collector.payloads == sent
    assert ws.bufferedAmount == 0


# --- A peer that resets


class Resetter:
    """A server's script: reads nothing, and resets the connection when it `may_reset`."""

    def __init__(self) -> None:
        self.may_reset = threading.Event()

    def __call__(self, peer: Peer) -> None:
        peer.accept()
        self.may_reset.wait(LIMIT)
        peer.reset()


@pytest.mark.usefixtures("any_thread")
@BOTH
def test_after_a_reset_sends_raise_and_buffered_amount_stays(ca: Authority, tls: bool) -> None:
    resetter = Resetter()
    with RawServer(resetter, ssl=ca.server() if tls else None) as server, connected(server, ca, tls) as ws:
        sent = sum(map(len, send_until_stuck(ws)))
        ws.send(b"last")
        resetter.may_reset.set()
        assert ws.wait_closed(LIMIT).code == 1006
        with pytest.raises(ConnectionClosed):
            ws.send(b"too late")
        assert 4 <= ws.bufferedAmount <= sent + 4


@pytest.mark.usefixtures("any_thread")
@BOTH
def test_a_reset_ends_every_send_that_waits_or_goes_on(ca: Authority, tls: bool) -> None:
    resetter, raised = Resetter(), []

    def send_until_closed(message: bytes) -> None:
        try:
            while True:
                ws.send(message)
        except ConnectionClosed as error:
            raised.append(error)

    context = ca.server() if tls else None
    with RawServer(resetter, ssl=context) as server, connected(server, ca, tls, write_limit=2**20) as ws:
        threads = in_threads(partial(send_until_closed, bytes(size)) for size in (1, 1, MUCH, MUCH))
        while not ws._nwebsocket.bridge.waiters.anyone_waits():
            pause()
        resetter.may_reset.set()
        join(threads)
        assert len(raised) == 4
        assert ws.wait_closed(LIMIT).code == 1006
        assert ws.bufferedAmount > 0


@pytest.mark.parametrize("size", [5, 5_000])
@pytest.mark.parametrize("kind", [WebSocket, ReconnectingWebSocket])
def test_a_ping_that_is_not_taken_makes_no_message_count_as_unsent(
    echo: str, kind: type[WebSocket], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kind(echo, compression=None, write_limit=4096) as ws:
        ws.send(bytes(size))
        assert ws.recv(LIMIT) == bytes(size)
        with monkeypatch.context() as patch:
            patch.setattr(Transport, "flush", lambda *_: False)
            with pytest.raises(WaitTimeout):
                ws.ping(0.05)
            assert ws.bufferedAmount == 0
            assert not ws._nwebsocket.bridge.outgoing.over_limit()
        ws.send("y")
        assert ws.recv(LIMIT) == "y"
