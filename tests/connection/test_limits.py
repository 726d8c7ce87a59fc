"""Limits: of a message's size, of the inbox, of what waits to be sent; and of patience: keepalive and close_timeout."""

from __future__ import annotations

import contextlib
import queue
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
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
    binary,
    close_frame,
    echo_server,
    frame,
    ping,
    pong,
    text,
)
from until import until

from nwebsocket import ConnectionClosed, ConnectionLost, KeepaliveTimeout, MessageTooBig, WebSocket
from nwebsocket._connection import bridge as bridge_module
from nwebsocket._connection import inbox as inbox_module
from nwebsocket._connection import outgoing
from nwebsocket._protocol.connection import Protocol
from nwebsocket._protocol.found_numpy import load_numpy

WHERE = pytest.mark.parametrize("where", ["thread", "loop"])
DEFLATE = "permessage-deflate"


def deflated(payload: bytes) -> bytes:
    """The payload of a compressed message (RFC 7692 section 7.2.1)."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def fragmented(opcode: int, *parts: bytes) -> bytes:
    """A message in one frame for each part."""
    return b"".join(
        frame(CONTINUATION if index else opcode, part, fin=index == len(parts) - 1) for index, part in enumerate(parts)
    )


def code_of(payload: bytes) -> int:
    """The code in the payload of a Close frame."""
    return int(struct.unpack("!H", payload[:2])[0])


@contextlib.contextmanager
def opened(script: Callable[[Peer], object], **options: Any) -> Iterator[WebSocket]:
    """An open socket whose server runs `script`; closed without much patience."""
    with RawServer(script) as server:
        ws = WebSocket(server.url, **{"close_timeout": 0.1, **options})
        try:
            yield ws.wait_open(LIMIT)
        finally:
            ws.close()
            ws.wait_closed(LIMIT)


# --- max_size


@pytest.mark.parametrize(
    ("message", "received"),
    [
        (text("x" * 100), "x" * 100),
        (binary(bytes(100)), bytes(100)),
        (text("é" * 50), "é" * 50),
        (fragmented(BINARY, bytes(60), b"", bytes(40)), bytes(100)),
        (frame(BINARY, deflated(bytes(100)), rsv=4), bytes(100)),
    ],
    ids=["text", "binary", "text of two bytes each", "fragments", "compressed"],
)
def test_a_message_of_exactly_max_size(message: bytes, received: Any) -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=message, extensions=DEFLATE)
        peer.read_until_close()
        peer.send(close_frame())

    with opened(script, max_size=100) as ws:
        assert ws.recv(LIMIT) == received
        ws.close()
        assert ws.wait_closed(LIMIT).wasClean


@pytest.mark.parametrize(
    "message",
    [
        text("x" * 101),
        binary(bytes(101)),
        text("é" * 51),
        fragmented(BINARY, bytes(60), bytes(41)),
        frame(BINARY, bytes(60), fin=False) + frame(CONTINUATION, bytes(41), fin=False),
        frame(BINARY, b"", length=101),
        frame(BINARY, b"", length=2**62),
        frame(BINARY, deflated(bytes(101)), rsv=4),
        frame(BINARY, deflated(bytes(2**26)), rsv=4),
    ],
    ids=[
        "text",
        "binary",
        "text of two bytes each",
        "fragments",
        "fragments without end",
        "head",
        "huge head",
        "compressed",
        "bomb",
    ],
)
def test_a_message_over_max_size_fails_the_connection_with_1009(message: bytes) -> None:
    codes: list[int] = []

    def script(peer: Peer) -> None:
        peer.accept(after=text("before") + message, extensions=DEFLATE)
        codes.append(code_of(peer.read_until_close()[-1].payload))

    with RawServer(script) as server:
        ws = WebSocket(server.url, max_size=100)
        assert ws.recv(LIMIT) == "before"
        with pytest.raises(MessageTooBig, match="100") as raised:
            ws.recv(LIMIT)
        assert ws.wait_closed(LIMIT).code == 1006
    assert (raised.value.sent_code, raised.value.closed_first) == (1009, "client")
    assert codes == [1009]


def test_the_limit_is_for_each_message() -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=binary(bytes(60)) * 10)
        peer.stall()

    with opened(script, max_size=100) as ws:
        assert [ws.recv(LIMIT) for _ in range(10)] == [bytes(60)] * 10


def test_what_is_sent_has_no_limit() -> None:
    server = echo_server(handler=lambda connection: connection.send(str(len(connection.recv()))))
    with server, WebSocket(server.url, max_size=10) as ws:
        ws.send(bytes(10**6))
        assert ws.recv(LIMIT) == "1000000"


@pytest.mark.slow
def test_without_max_size_there_is_no_limit() -> None:
    def script(peer: Peer) -> None:
        peer.accept(after=frame(BINARY, deflated(bytes(2**25)), rsv=4), extensions=DEFLATE)
        peer.stall()

    with opened(script, max_size=None) as ws:
        assert ws.recv(LIMIT) == bytes(2**25)


# --- max_queue


class Flood:
    """A server's script: `total` messages of 100,000 bytes, numbered; then the Close frame is awaited and answered.

    ``sent``      how many the operating system has taken
    ``stopped``   waits until no more is taken: then the client does not read
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.sent = 0

    def __call__(self, peer: Peer) -> None:
        peer.accept()
        for number in range(self.total):
            peer.send(binary(number.to_bytes(100_000, "big")))
            self.sent = number + 1
        while (received := peer.read_frame()).opcode != CLOSE:
            if received.opcode == PING:
                peer.send(pong(received.payload))
        peer.send(frame(CLOSE, received.payload))

    def stopped(self) -> int:
        """Wait until the server's send() blocks, and return how many messages it could send."""
        before = -1
        deadline = time.monotonic() + LIMIT
        while before != self.sent or not self.sent:
            assert time.monotonic() < deadline
            before = self.sent
            time.sleep(0.2)  # longer than any pause of a sender that is not blocked
        return before


TOTAL = 500  # of 100,000 bytes each: far more than the buffers of the operating system hold


def numbers(messages: Any) -> list[int]:
    return [int.from_bytes(message, "big") for message in messages]


def test_a_full_inbox_stops_the_server_and_loses_nothing(log: Any) -> None:
    flood = Flood(TOTAL)
    with opened(flood, max_queue=4, ping_interval=0.1, ping_timeout=0.1) as ws:
        assert flood.stopped() < TOTAL
        assert ws.stats.inbox < 4 + 10  # what one read brings comes on top
        # Keepalive has not taken our own silence for the server's, which has lasted longer than it would wait.
        assert ws.readyState == WebSocket.OPEN
        assert numbers(ws.recv(LIMIT) for _ in range(TOTAL)) == list(range(TOTAL))
    (warning,) = [record.getMessage() for record in log.warnings()]
    assert "max_queue=4" in warning


@WHERE
def test_a_handler_set_late_gets_all_of_a_full_inbox(log: Any, where: Any) -> None:
    flood = Flood(TOTAL)
    heard: list[Any] = []
    complete = threading.Event()

    def onmessage(message: Any) -> None:
        heard.append(message)
        if len(heard) == TOTAL:
            complete.set()

    with opened(flood, max_queue=4, callbacks=where) as ws:
        assert flood.stopped() < TOTAL
        ws.onmessage = onmessage
        assert complete.wait(LIMIT)
    assert numbers(heard) == list(range(TOTAL))
    assert len(log.warnings()) == 1


def test_a_slow_handler_stops_the_server(log: Any) -> None:
    flood = Flood(TOTAL)
    released, complete = threading.Event(), threading.Event()
    heard: list[Any] = []

    def onmessage(message: Any) -> None:
        released.wait(LIMIT)
        heard.append(message)
        if len(heard) == TOTAL:
            complete.set()

    with opened(flood, max_queue=4) as ws:
        ws.onmessage = onmessage
        assert flood.stopped() < TOTAL
        released.set()
        assert complete.wait(LIMIT)
    assert numbers(heard) == list(range(TOTAL))
    assert len(log.warnings()) == 1


def test_close_gets_through_a_full_inbox(log: Any) -> None:
    flood = Flood(TOTAL)
    with opened(flood, max_queue=4, close_timeout=LIMIT) as ws:
        assert flood.stopped() < TOTAL
        ws.close(3000)
        assert ws.wait_closed(LIMIT).code == 3000
        assert numbers(ws) == list(range(TOTAL))
    assert len(log.warnings()) == 1


def test_the_inbox_has_a_bound_in_bytes(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "INBOX_BYTES", 10**6)
    flood = Flood(TOTAL)
    with opened(flood) as ws:
        assert flood.stopped() < TOTAL
        assert ws.stats.inbox < 20
        assert numbers(ws.recv(LIMIT) for _ in range(TOTAL)) == list(range(TOTAL))
    assert len(log.warnings()) == 1


@pytest.mark.parametrize("how", ["recv", "handler"])
@pytest.mark.parametrize("bound", ["count", "bytes"])
def test_to_know_that_the_inbox_is_full_takes_a_few_looks_for_each_message(
    how: str, bound: str, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To see how much memory it takes, all that waits is looked at: that must not be done at each step."""
    monkeypatch.setattr(inbox_module, "INBOX_BYTES", 2**19 if bound == "bytes" else 2**26)
    total, looks = 12_000, [0]
    measure = inbox_module.Inbox._measure

    def counted(inbox: inbox_module.Inbox) -> int:
        looks[0] += len(inbox.messages)
        return measure(inbox)

    monkeypatch.setattr(inbox_module.Inbox, "_measure", counted)

    def script(peer: Peer) -> None:
        peer.accept()
        for start in range(0, total, 50):
            peer.send(b"".join(text(str(number)) for number in range(start, start + 50)))
        peer.read_until_close()
        peer.send(close_frame(1000))

    heard: list[str] = []
    over = threading.Event()

    def onmessage(message: str) -> None:
        heard.append(message)
        if len(heard) == total:
            over.set()

    with opened(script, max_queue=2000 if bound == "count" else 10**6) as ws:
        until(lambda: ws._nwebsocket.bridge.inbox.reading_stopped)
        if how == "recv":
            heard = [ws.recv(LIMIT) for _ in range(total)]
        else:
            ws.onmessage = onmessage
            assert over.wait(LIMIT)
    assert heard == [*map(str, range(total))]
    assert 0 < looks[0] < 20 * total
    log.warnings()


def test_messages_can_be_sent_while_the_inbox_is_full(log: Any) -> None:
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        peer.accept()
        for _ in range(1000):
            peer.send(text("x"))
        received.put(peer.read_frame().payload)
        peer.stall()

    with opened(script, max_queue=4) as ws:
        while ws.stats.inbox < 4:
            assert ws.readyState == WebSocket.OPEN
        ws.send("y")
        assert received.get(timeout=LIMIT) == b"y"
    log.warnings()


# --- Keepalive


def test_a_silent_server_is_given_up() -> None:
    frames: list[int] = []

    def script(peer: Peer) -> None:
        peer.accept()
        frames.append(peer.read_frame().opcode)
        peer.stall()

    with RawServer(script) as server:
        ws = WebSocket(server.url, ping_interval=0.1, ping_timeout=0.1).wait_open(LIMIT)
        started = time.monotonic()
        with pytest.raises(KeepaliveTimeout, match=r"ping_interval=0\.1 s") as raised:
            ws.recv(LIMIT)
        assert 0.15 < time.monotonic() - started < 1.2
        assert ws.wait_closed(LIMIT).code == 1006
    assert isinstance(raised.value, TimeoutError)
    assert isinstance(raised.value, ConnectionLost)
    assert frames == [PING]


def test_a_server_that_answers_pings_is_alive(echo: str) -> None:
    with WebSocket(echo, ping_interval=0.05, ping_timeout=0.5) as ws:
        with pytest.raises(TimeoutError):
            ws.recv(0.5)
        assert ws.latency is not None
        ws.send("x")
        assert ws.recv(LIMIT) == "x"


@pytest.mark.parametrize("sign", [text("."), ping(), pong(b"?"), b"\x82"], ids=["text", "ping", "pong", "byte"])
def test_whatever_a_server_sends_is_a_sign_of_life(sign: bytes) -> None:
    stop = threading.Event()

    def script(peer: Peer) -> None:
        peer.accept()
        if sign == b"\x82":  # one byte after the other of one long frame
            peer.send(frame(BINARY, b"", length=1000))
        while not stop.wait(0.05):
            peer.send(sign)

    with RawServer(script) as server:
        ws = WebSocket(server.url, ping_interval=0.2, ping_timeout=0.2, close_timeout=0.1).wait_open(LIMIT)
        with pytest.raises(TimeoutError):
            ws.wait_closed(1)
        assert ws.readyState == WebSocket.OPEN
        ws.close()
        stop.set()
        ws.wait_closed(LIMIT)


def test_without_ping_interval_nothing_is_sent() -> None:
    frames: list[int] = []

    def script(peer: Peer) -> None:
        peer.accept()
        frames.extend(received.opcode for received in peer.read_until_close())

    with opened(script, ping_interval=None) as ws, pytest.raises(TimeoutError):
        ws.recv(0.3)
    assert frames == [CLOSE]


def test_without_ping_timeout_a_silent_server_is_waited_for() -> None:
    frames: list[int] = []

    def script(peer: Peer) -> None:
        peer.accept()
        frames.append(peer.read_frame().opcode)
        peer.stall()

    with opened(script, ping_interval=0.05, ping_timeout=None) as ws:
        with pytest.raises(TimeoutError):
            ws.recv(0.5)
        assert ws.readyState == WebSocket.OPEN
    assert frames == [PING]


def test_a_silent_server_is_given_up_even_if_it_takes_no_bytes() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.stall()

    load_numpy()  # else the first large message does, and on a busy machine that takes longer than the keepalive waits
    with opened(script, ping_interval=0.2, ping_timeout=0.2) as ws:
        ws.send(bytes(2**24))  # more than the buffers of the operating system hold
        with pytest.raises(KeepaliveTimeout):
            ws.recv(1.4)


# --- close_timeout


@pytest.fixture(params=["told", "looks"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the loop learns of a close(): it is told, or it looks for it in time."""
    monkeypatch.setattr(bridge_module, "MIN_LOOK", {"told": 5.0, "looks": 0.0}[request.param])


@pytest.mark.usefixtures("loop")
def test_a_server_that_never_answers_the_close() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_until_close()
        peer.stall()

    with RawServer(script) as server:
        ws = WebSocket(server.url, close_timeout=0.3).wait_open(LIMIT)
        started = time.monotonic()
        ws.close()
        event = ws.wait_closed(LIMIT)
        assert 0.3 <= time.monotonic() - started < 1.3
    assert (event.code, event.reason, event.wasClean) == (1006, "", False)
    with pytest.raises(ConnectionLost, match=r"close_timeout=0\.3 s") as raised:
        ws.recv(0)
    assert raised.value.closed_first == "client"


@pytest.mark.usefixtures("loop")
def test_a_server_that_talks_on_after_our_close_is_cut_too() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_until_close()
        with contextlib.suppress(OSError):
            while True:
                peer.send(text("more"))
                time.sleep(0.02)

    with RawServer(script) as server:
        ws = WebSocket(server.url, close_timeout=0.3).wait_open(LIMIT)
        started = time.monotonic()
        ws.close()
        assert ws.wait_closed(LIMIT).code == 1006
        assert time.monotonic() - started < 1.3


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_server_that_never_closes_tcp(who: str) -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        if who == "server":
            peer.send(close_frame(1000))
        peer.read_until_close()
        if who == "client":
            peer.send(close_frame(1000))
        peer.stall()

    with RawServer(script) as server:
        ws = WebSocket(server.url)
        if who == "client":
            ws.wait_open(LIMIT).close(1000)
        started = time.monotonic()
        event = ws.wait_closed(LIMIT)
        assert time.monotonic() - started < 2
    assert (event.code, event.wasClean) == (1000, True)


def test_a_slow_reader_gets_everything_though_it_takes_longer_than_close_timeout() -> None:
    received = bytearray()
    codes: list[int] = []

    def script(peer: Peer) -> None:
        peer.accept()
        while (message := peer.read_frame()).opcode != CLOSE:
            received.extend(message.payload[:1])
            time.sleep(0.02)  # for each MiB
        codes.append(code_of(message.payload))
        peer.send(close_frame(1000))

    with RawServer(script) as server:
        ws = WebSocket(server.url, close_timeout=0.3, compression=None, write_limit=2**30).wait_open(LIMIT)
        for number in range(40):
            ws.send(bytes([number]) * 2**20)
        ws.close(1000)
        started = time.monotonic()
        event = ws.wait_closed(LIMIT)
        assert time.monotonic() - started > 0.3
    assert event.wasClean
    assert bytes(received) == bytes(range(40))
    assert codes == [1000]
    assert ws.bufferedAmount == 0


def test_a_server_that_stops_reading_is_cut_and_what_it_did_not_get_stays_counted() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        peer.stall()

    with RawServer(script) as server:
        ws = WebSocket(server.url, close_timeout=0.3, compression=None, write_limit=2**30).wait_open(LIMIT)
        ws.send(bytes(2**25))
        ws.close()
        assert ws.wait_closed(2).code == 1006
        assert 0 < ws.bufferedAmount <= 2**25


# --- write_limit


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
def test_a_server_that_pings_and_does_not_read_gets_64_kib_of_pongs_and_the_last(ca: Authority, secure: bool) -> None:
    """The pongs that have not been written yet do not pile up without end, nor cut the message under way."""
    seen: list[list[Frame]] = []

    def script(peer: Peer) -> None:
        peer.take_little()
        peer.accept()
        for number in range(20):
            pings = b"".join(ping(b"%0120d" % (50 * number + n)) for n in range(50))
            peer.send(pings + text("pinged"))
            turns.get(timeout=LIMIT)
        seen.append(peer.read_until_close())
        peer.send(close_frame(1000))

    turns: queue.SimpleQueue[str | bytes] = queue.SimpleQueue()
    with RawServer(script, ssl=ca.server() if secure else None) as server:
        with WebSocket(server.url, ssl=ca.client(), compression=None) as ws:
            ws.send(bytes(15 * 2**20))
            until(lambda: ws.bufferedAmount < 15 * 2**20)  # else the loop may answer twice before it writes any of that
            for _ in range(20):
                turns.put(ws.recv(LIMIT))
            ws.send("after")
        assert ws.wait_closed(LIMIT).wasClean
    pongs = [int(frame.payload) for frame in seen[0] if frame.opcode == PONG]
    assert [(len(frame.payload), frame.opcode) for frame in seen[0][-2:-1]] == [(5, TEXT)]
    assert [len(frame.payload) for frame in seen[0] if frame.opcode == BINARY] == [15 * 2**20]
    assert pongs[:-1] == list(range(len(pongs) - 1))
    assert (pongs[-1], 500 <= len(pongs) < 600) == (999, True)


def test_what_answers_a_message_does_not_overtake_the_pongs_of_the_pings_before_it() -> None:
    seen: list[list[Frame]] = []

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(b"".join(ping(b"%d" % n) for n in range(10)) + text("x"))
        seen.append(peer.read_until_close())
        peer.send(close_frame(1000))

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks="loop")
        ws.onmessage = lambda message: (ws.send(message), ws.close())
        assert ws.wait_closed(LIMIT).wasClean
    assert [frame.payload for frame in seen[0][:-1]] == [*(b"%d" % n for n in range(10)), b"x"]


def test_buffered_amount_counts_bytes_and_falls_to_zero() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        may_go_on.wait(LIMIT)
        peer.read_until_close()
        peer.send(close_frame())

    may_go_on = threading.Event()
    with RawServer(script) as server, WebSocket(server.url, compression=None) as ws:
        assert ws.bufferedAmount == 0
        ws.send("é" * 2**22)
        at_once = ws.bufferedAmount
        assert 0 < at_once <= 2**23
        ws.send("é" * 10)
        assert ws.bufferedAmount <= 2**23 + 20
        may_go_on.set()
    assert ws.bufferedAmount == 0


def test_on_the_loop_send_never_waits_and_the_server_is_not_read_meanwhile() -> None:
    """A reflecting handler against a server that sends and does not read: neither side may eat the memory."""
    flood = 400
    may_read = threading.Event()
    sent = 0

    def script(peer: Peer) -> None:
        nonlocal sent
        peer.accept()

        def send_all() -> None:
            nonlocal sent
            for number in range(flood):
                peer.send(binary(number.to_bytes(100_000, "big")))
                sent = number + 1

        sending = threading.Thread(target=send_all)
        sending.start()
        may_read.wait(LIMIT)
        reflected.extend(int.from_bytes(peer.read_frame().payload, "big") for _ in range(flood))
        sending.join()
        peer.send(close_frame(1000))
        peer.read_until_close()

    def reflect(message: Any) -> None:
        ws.send(message)
        highest.append(ws.bufferedAmount)

    reflected: list[int] = []
    highest: list[int] = []
    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks="loop", write_limit=10**6, compression=None)
        ws.onmessage = reflect
        before = -1
        while before != sent or not sent:
            before = sent
            time.sleep(0.2)  # longer than any pause of a sender that is not blocked
        assert sent < flood
        may_read.set()
        assert ws.wait_closed(LIMIT).code == 1000
    assert reflected == list(range(flood))
    # The messages of the read during which the limit was passed come on top.
    assert max(highest) < 10**6 + 2**20


def test_on_the_loop_one_callback_may_send_more_than_the_limit() -> None:
    def script(peer: Peer) -> None:
        peer.accept()
        sizes.extend(len(message.payload) for message in peer.read_until_close()[:-1])
        peer.send(close_frame(1000))

    def onopen() -> None:
        for _ in range(50):
            ws.send(bytes(10**5))
        ws.close(1000)

    sizes: list[int] = []
    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks="loop", write_limit=1, compression=None)
        ws.onopen = onopen
        assert ws.wait_closed(LIMIT).wasClean
    assert sizes == [10**5] * 50


def test_on_the_loop_a_connection_lost_above_the_limit_ends() -> None:
    """The intake waits for room that will never be."""
    sent = threading.Event()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(text("go"))
        sent.wait(LIMIT)
        peer.reset()

    def send_much(message: Any) -> None:
        ws.send(bytes(2**24))
        sent.set()

    with RawServer(script) as server:
        ws = WebSocket(server.url, callbacks="loop", write_limit=1, compression=None)
        ws.onmessage = send_much
        assert ws.wait_closed(LIMIT).code == 1006


def test_in_a_callback_on_a_thread_send_waits() -> None:
    entered = threading.Event()
    result: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.stall()

    def onopen() -> None:
        entered.set()
        try:
            while True:
                ws.send(bytes(10**6))
        except ConnectionClosed as error:
            result.put(error)

    with opened(script, write_limit=10**6) as ws:
        ws.onopen = onopen
        assert entered.wait(LIMIT)
        with pytest.raises(queue.Empty):
            result.get(timeout=0.3)
        assert ws.bufferedAmount <= 2 * 10**6
        ws.close()
        assert isinstance(result.get(timeout=1), ConnectionClosed)


def test_a_message_larger_than_write_limit_is_sent(echo: str) -> None:
    with WebSocket(echo, write_limit=1) as ws:
        ws.send("x" * 10**6)
        ws.send("y" * 10**6)
        assert [len(ws.recv(LIMIT)) for _ in range(2)] == [10**6] * 2


# --- Fairness


@pytest.mark.slow
def test_a_sender_that_never_pauses_does_not_starve_the_other_connections(echo: str) -> None:
    enough = threading.Event()

    def script(peer: Peer) -> None:
        peer.accept()
        peer.read_eof()

    def send_on(ws: WebSocket) -> None:
        while not enough.is_set():
            ws.send("x")

    with opened(script, compression=None) as busy, WebSocket(echo) as other:
        senders = [threading.Thread(target=send_on, args=(busy,)) for _ in range(2)]
        for sender in senders:
            sender.start()
        try:
            for number in range(20):
                other.send(str(number))
                assert other.recv(LIMIT) == str(number)
            assert other.ping(LIMIT) > 0
        finally:
            enough.set()
            for sender in senders:
                sender.join()


def test_empty_messages_that_nobody_takes_are_not_free(echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bufferedAmount counts payload, of which they have none; the memory they take is bounded all the same."""
    entered, release, sent = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setitem(Protocol.__init__.__kwdefaults__, "fast_lane", False)  # only the loop thread writes

    def onopen() -> None:
        entered.set()
        release.wait(LIMIT)  # the loop thread takes nothing meanwhile

    def send_many() -> None:
        for _ in range(1000):
            ws.send("")
        sent.set()

    with WebSocket(echo, callbacks="loop", write_limit=64_000) as ws:
        ws.onopen = onopen
        assert entered.wait(LIMIT)
        sender = threading.Thread(target=send_many)
        sender.start()
        assert not sent.wait(0.3)
        assert ws.stats.messages_sent == 64_000 // outgoing.MESSAGE_OVERHEAD
        assert ws.bufferedAmount == 0
        release.set()
        sender.join()
        assert [ws.recv(LIMIT) for _ in range(1000)] == [""] * 1000


@pytest.mark.slow
@WHERE
def test_a_burst_of_tiny_messages_is_taken_in_small_pieces(where: Any, log: Any) -> None:
    """One read of the socket can hold a hundred thousand: neither the inbox nor the loop takes them in one go."""
    sent = [""] * 100_000

    def script(peer: Peer) -> None:
        peer.accept()
        peer.send(b"".join(map(text, sent)) + close_frame(1000))
        peer.read_until_close()

    with opened(script, max_queue=100, compression=None, callbacks=where) as ws, echo_server() as server:
        with WebSocket(server.url) as other:
            other.send("x")
            assert other.recv(LIMIT) == "x"
        _until_reading_stops(log)
        assert 100 <= ws.stats.inbox < 5000
        assert list(ws) == sent


def _until_reading_stops(log: Any) -> None:
    deadline = time.monotonic() + LIMIT
    while not any("reading stops" in record.getMessage() for record in log.warnings()):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


@pytest.mark.slow
def test_a_consumer_that_empties_the_inbox_while_it_is_found_full_is_not_missed(echo: str) -> None:
    with WebSocket(echo, max_queue=1) as ws:
        bridge, inbox = ws._nwebsocket.bridge, ws._nwebsocket.bridge.inbox
        ws.send("x")
        assert bridge.wait(lambda: inbox.messages, 2.0)  # nobody is woken for that: it takes all of the time
        measure = inbox._measure

        def consumed_meanwhile() -> int:
            size = measure()
            inbox.take()  # as the callback thread does without the lock
            return size

        inbox._measure = consumed_meanwhile
        bridge.is_full()
        assert not inbox.reading_stopped
        del inbox._measure
        ws.send("y")
        assert ws.recv(LIMIT) == "y"
