"""recv() reading the socket itself: nothing is lost, doubled or late, whatever comes and whoever else wants to read."""

from __future__ import annotations

import contextlib
import itertools
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from alarms import Interruption, alarm, no_collection
from peers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    LIMIT,
    PING,
    PONG,
    TEXT,
    Authority,
    Peer,
    RawServer,
    binary,
    close_frame,
    frame,
    text,
)
from until import until

from nwebsocket import ConnectionClosed, ConnectionLost, WaitTimeout, WebSocket, connect
from nwebsocket._connection import intake as intake_module
from nwebsocket._connection.lent_sockets import AVAILABLE, IDLE, LentSockets
from nwebsocket._connection.reader import Reader
from nwebsocket._network.tls import TLS
from nwebsocket._protocol.fast_lane import ENABLED

pytestmark = pytest.mark.skipif(
    not (ENABLED and AVAILABLE), reason="recv() reads the socket only with the fast lane, and where there is epoll"
)


class Sayer:
    """A server's script that does what the messages say.

    ``streams``  what "stream 0" and so on send, in segments
    ``ponged``   is set when a Pong comes
    """

    def __init__(self) -> None:
        self.streams: list[list[bytes]] = []
        self.ponged = threading.Event()
        self.ended = False

    def __call__(self, peer: Peer) -> None:
        peer.accept()
        while not self.ended and (got := peer.read_frame()).opcode != CLOSE:
            word, _, rest = got.payload.decode(errors="replace").partition(" ")
            if got.opcode == PONG:
                self.ponged.set()
            elif got.opcode == PING:
                peer.send(frame(PONG, got.payload))
            else:
                getattr(self, word)(peer, rest)
        if not self.ended:
            peer.send(close_frame(1000))

    def echo(self, peer: Peer, rest: str) -> None:
        peer.send(text(rest))

    def ping(self, peer: Peer, rest: str) -> None:
        peer.send(frame(PING, b"?"))

    def numbers(self, peer: Peer, rest: str) -> None:
        for number in range(int(rest)):
            peer.send(text(str(number)))

    def flood(self, peer: Peer, rest: str) -> None:
        peer.send(b"".join(text(str(number)) for number in range(int(rest))))

    def stream(self, peer: Peer, rest: str) -> None:
        for segment in self.streams[int(rest)]:
            peer.send(segment)

    def end(self, peer: Peer, rest: str) -> None:
        self.ended = True
        if rest == "cleanly":
            peer.send(close_frame(1001))
            peer.read_until_close()
            peer.close()
        elif rest == "with a reset":
            peer.reset()
        else:
            peer.close()


@pytest.fixture
def sayer() -> Sayer:
    return Sayer()


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def server(sayer: Sayer, ca: Authority, tls: bool) -> Iterator[RawServer]:
    with RawServer(sayer, ssl=ca.server() if tls else None) as server:
        yield server


@pytest.fixture
def options(ca: Authority, tls: bool) -> dict[str, Any]:
    return {"compression": None, "ssl": ca.client() if tls else None}


@pytest.fixture
def ws(server: RawServer, options: dict[str, Any]) -> Iterator[WebSocket]:
    """An open connection to the sayer."""
    ws = connect(server.url, **options)
    yield ws
    ws.close()
    ws.wait_closed(LIMIT)


@pytest.fixture
def long_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop does not read again by itself: only when it is asked to, at once."""

    async def sleep(_: LentSockets) -> None:
        pass

    monkeypatch.setattr(LentSockets, "_look_where_something_waits", sleep)
    monkeypatch.setattr(LentSockets, "_look_at_all", sleep)


def lend(ws: WebSocket) -> Reader:
    """Exchange messages until recv() reads the socket itself."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        ws.send("echo a")
        assert ws.recv(LIMIT) == "a"
        reader: Reader | None = ws._nwebsocket.bridge.reader
        if reader is not None and reader.lent:
            return reader
    raise AssertionError("the socket is not lent to recv()")


@contextlib.contextmanager
def in_a_thread(function: Callable[[], Any], results: list[Any]) -> Iterator[None]:
    """Run the function in a thread of its own; its result, or what it raises, is appended."""

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(LIMIT)
    assert not thread.is_alive()


def waits_for_the_socket(reader: Reader) -> None:
    """Return when a thread waits in recv() for the socket."""
    until(lambda: not reader._pollers)


@pytest.mark.usefixtures("long_lease")
def test_the_loop_sleeps_while_recv_reads(ws: WebSocket, tls: bool) -> None:
    lend(ws)
    intake, before, seen_by_loop = ws._nwebsocket.bridge.intake, ws.stats, []
    intake._received = seen_by_loop.append
    for number in range(100):
        ws.send(f"echo {number}")
        assert ws.recv(LIMIT) == str(number)
    del intake._received
    assert seen_by_loop == []
    after = ws.stats
    assert after.messages_received == before.messages_received + 100
    if not tls:
        assert after.bytes_received == before.bytes_received + 10 * 3 + 90 * 4
    assert after.inbox == 0


def test_the_loop_reads_again_when_recv_does_not_come_back(ws: WebSocket, sayer: Sayer) -> None:
    lend(ws)
    ws.send("ping")
    assert sayer.ponged.wait(LIMIT)


@pytest.mark.usefixtures("long_lease")
def test_what_a_thread_has_read_is_there_when_the_connection_is_given_up(
    ca: Authority, options: dict[str, Any], sayer: Sayer
) -> None:
    def script(peer: Peer) -> None:
        with contextlib.suppress(EOFError, OSError):  # the client is gone at the end
            sayer(peer)

    with RawServer(script, ssl=ca.server() if options["ssl"] else None) as server:
        ws = connect(server.url, **options)
        reader = lend(ws)
        ws.send("flood 1000")  # 6 KiB: one read, of which the first 4 KiB go to the inbox
        heard = [ws.recv(LIMIT)]
        assert reader.has_left
        ws._nwebsocket.bridge.post(ws._nwebsocket.session._give_up)
        ws.wait_closed(LIMIT)
        heard += [ws.recv(0) for _ in range(ws.stats.inbox)]
        assert heard == [str(number) for number in range(1000)]


def test_the_loop_waits_again_for_a_socket_that_is_silent(ws: WebSocket) -> None:
    reader = lend(ws)
    until(lambda: not reader.lent, patience=IDLE + LIMIT)


def test_a_socket_that_is_seldom_read_is_not_lent(ws: WebSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "SOON", 0.0)
    for _ in range(3):
        ws.send("echo a")
        assert ws.recv(LIMIT) == "a"
    assert ws._nwebsocket.bridge.reader is None


def random_stream(chooser: random.Random) -> tuple[list[str | bytes], bytes]:
    """Messages, and the frames that carry them, with pings between."""
    messages: list[str | bytes] = []
    stream = bytearray()
    for _ in range(chooser.randint(1, 40)):
        size = chooser.choice([0, 1, 3, 125, 126, 2000, 65535, 65536, 200_000, 400_000])
        payload = chooser.randbytes(4) * (size // 4) if chooser.random() < 0.5 else b"a" * size
        kind = chooser.choice(["text", "binary", "binary", "fragments", "ping"])
        if kind == "ping":
            stream += frame(PING, payload[:125])
        elif kind == "text":
            messages.append("ä" * size)
            stream += text("ä" * size)
        elif kind == "binary":
            messages.append(payload)
            stream += binary(payload)
        else:
            messages.append(payload)
            stream += frame(BINARY, payload[:7], fin=False) + frame(CONTINUATION, payload[7:])
    return messages, bytes(stream)


@pytest.mark.usefixtures("long_lease")
@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_cut_anywhere_is_received_whole_and_in_order(ws: WebSocket, sayer: Sayer, seed: int) -> None:
    chooser = random.Random(seed)
    lend(ws)
    for number in range(5):
        messages, stream = random_stream(chooser)
        cuts = sorted(chooser.randrange(len(stream) + 1) for _ in range(chooser.choice([0, 1, 30])))
        sayer.streams.append([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)])
        ws.send(f"stream {number}")
        assert [ws.recv(LIMIT) for _ in messages] == messages
    ws.send("echo a")
    assert ws.recv(LIMIT) == "a"


@pytest.mark.usefixtures("long_lease")
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (frame(TEXT, b"\xff"), "not UTF-8"),
        (frame(TEXT, b"a", rsv=4), "reserved bit"),
        (frame(CONTINUATION, b"a"), "no message to continue"),
    ],
    ids=["not UTF-8", "reserved bit", "continuation of nothing"],
)
def test_a_fault_is_found_after_the_messages_before_it(ws: WebSocket, sayer: Sayer, bad: bytes, words: str) -> None:
    lend(ws)
    sayer.streams = [[text("good") + bad]]
    ws.send("stream 0")
    assert ws.recv(LIMIT) == "good"
    with pytest.raises(ConnectionClosed, match=words):
        ws.recv(LIMIT)


@pytest.mark.usefixtures("long_lease")
def test_a_message_too_big_is_refused(server: RawServer, sayer: Sayer, options: dict[str, Any]) -> None:
    with connect(server.url, max_size=1000, **options) as ws:
        lend(ws)
        sayer.streams = [[binary(bytes(1001))]]
        ws.send("stream 0")
        with pytest.raises(ConnectionClosed, match="1,001"):
            ws.recv(LIMIT)


@pytest.mark.usefixtures("long_lease")
def test_a_handler_that_is_set_hears_the_next_message(ws: WebSocket) -> None:
    reader, results, heard = lend(ws), list[Any](), list[Any]()
    done = threading.Event()

    def hear(message: str) -> None:
        heard.append(message)
        done.set()

    with in_a_thread(ws.recv, results):
        waits_for_the_socket(reader)
        ws.onmessage = hear
        ws.send("echo b")
        assert done.wait(LIMIT)
    assert heard == ["b"]
    assert "message handler" in str(results[0])


@pytest.mark.usefixtures("long_lease")
@pytest.mark.parametrize("inside", [False, True], ids=["before recv()", "inside recv()"])
@pytest.mark.parametrize("how", ["cleanly", "without a word", "with a reset"])
def test_the_end_is_noticed(ws: WebSocket, inside: bool, how: str) -> None:
    reader, results = lend(ws), list[Any]()
    if inside:
        with in_a_thread(ws.recv, results):
            waits_for_the_socket(reader)
            ws.send(f"end {how}")
    else:
        ws.send(f"end {how}")
    event = ws.wait_closed(LIMIT)
    assert event.code == (1001 if how == "cleanly" else 1006)
    with pytest.raises(ConnectionClosed) as raised:
        ws.recv(0)
    if how == "with a reset":
        assert isinstance(raised.value, ConnectionLost)
        assert "reset" in str(raised.value)
    assert all(isinstance(result, ConnectionClosed) for result in results)
    assert len(results) == inside


@pytest.mark.usefixtures("long_lease")
def test_close_from_another_thread(ws: WebSocket) -> None:
    reader, results = lend(ws), list[Any]()
    with in_a_thread(ws.recv, results):
        waits_for_the_socket(reader)
        ws.close()
        assert ws.wait_closed(LIMIT).wasClean
    assert isinstance(results[0], ConnectionClosed)


@pytest.mark.usefixtures("long_lease")
def test_ping_from_another_thread(ws: WebSocket) -> None:
    reader, results = lend(ws), list[Any]()
    with in_a_thread(ws.recv, results):
        waits_for_the_socket(reader)
        assert ws.ping(LIMIT) < LIMIT
        ws.send("echo b")
    assert results == ["b"]


@pytest.mark.usefixtures("long_lease")
def test_several_threads_receive_each_message_once(ws: WebSocket) -> None:
    lend(ws)
    received: list[list[int]] = [[], [], []]

    def receive(numbers: list[int]) -> Callable[[], None]:
        def loop() -> None:
            with contextlib.suppress(WaitTimeout):
                while True:
                    numbers.append(int(ws.recv(0.5)))

        return loop

    results: list[Any] = []
    with contextlib.ExitStack() as stack:
        for numbers in received:
            stack.enter_context(in_a_thread(receive(numbers), results))
        ws.send("numbers 3000")
        ws.send("flood 3000")
    assert results == [None, None, None]
    assert sorted(itertools.chain(*received)) == sorted([*range(3000), *range(3000)])


@pytest.mark.usefixtures("long_lease")
@pytest.mark.parametrize("timeout", [0, 0.001, 0.1])
def test_a_time_out_is_kept(ws: WebSocket, timeout: float) -> None:
    lend(ws)
    start = time.monotonic()
    with pytest.raises(WaitTimeout):
        ws.recv(timeout)
    assert timeout <= time.monotonic() - start < LIMIT
    ws.send("echo b")
    assert ws.recv(LIMIT) == "b"


def test_who_stops_receiving_is_not_sent_more_than_the_inbox_takes(server: RawServer, options: dict[str, Any]) -> None:
    with connect(server.url, max_queue=100, **options) as ws:
        lend(ws)
        ws.send("flood 200000")
        assert ws.recv(LIMIT) == "0"
        until(lambda: ws._nwebsocket.bridge.inbox.reading_stopped)
        assert ws.stats.inbox < 100_000
        assert [ws.recv(LIMIT) for _ in range(1, 200_000)] == [str(number) for number in range(1, 200_000)]


# --- Interrupted anywhere


@contextlib.contextmanager
def alarms(handler: Callable[..., Any]) -> Iterator[None]:
    """Have the handler called every millisecond."""
    with no_collection(), alarm(handler, 0.001, 0.001):
        yield


def test_an_interrupted_recv_doubles_nothing_and_harms_nothing(ws: WebSocket) -> None:
    """It may lose the one message that it was about to return: Python has no place to put that."""
    armed, interrupted, received = False, 0, list[int]()

    def handler(*_: object) -> None:
        nonlocal armed, interrupted
        if armed:
            armed = False
            interrupted += 1
            raise Interruption

    lend(ws)
    ws.send("numbers 10000")
    with alarms(handler):
        while not received or received[-1] < 9_999:
            try:
                try:
                    armed = True
                    message = ws.recv(0.5)
                    received.append(int(message))
                finally:
                    armed = False
            except Interruption:
                pass
            except WaitTimeout:
                break  # it was the last one
    assert interrupted > 20
    assert received == sorted(set(received))
    assert 10_000 - len(received) <= interrupted
    ws.send("echo b")
    assert ws.recv(LIMIT) == "b"


def test_a_signal_handler_may_receive_inside_recv(ws: WebSocket) -> None:
    received = list[int]()

    def handler(*_: object) -> None:
        try:
            received.append(int(ws.recv(0)))
        except WaitTimeout:
            pass
        except RuntimeError:  # it has interrupted what it would wait for
            pass

    lend(ws)
    ws.send("numbers 10000")
    with alarms(handler):
        while len(received) < 10_000:
            with contextlib.suppress(WaitTimeout):
                received.append(int(ws.recv(0.01)))
    assert sorted(received) == list(range(10_000))


class InterruptedList(list[bytes]):
    """A list after whose append() a signal handler may raise."""

    def __init__(self, strike: Callable[[], None]) -> None:
        self._strike = strike

    def append(self, item: bytes) -> None:
        super().append(item)
        self._strike()


class Decryption:
    """TLS that has records to decrypt, and the ``strike``-th call of which a signal handler interrupts at its end."""

    def __init__(self, ca: Authority, strike: int) -> None:
        self._left = strike
        self.tls = TLS(ca.client(), "localhost")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = ca.server().wrap_bio(incoming, outgoing, server_side=True)
        for _ in range(3):
            self.tls.handshake()
            incoming.write(self.tls.take_output(-1))
            with contextlib.suppress(ssl.SSLWantReadError):
                server.do_handshake()
            if outgoing.pending:
                self.tls.feed(outgoing.read())
        self._server, self._outgoing = server, outgoing
        self.pieces = InterruptedList(self._strike)
        for name in ("_read_into", "_pending"):
            setattr(self.tls, name, self._interrupted(getattr(self.tls, name)))

    def strike(self, strike: int) -> None:
        """Have another call interrupted; 0: none."""
        self._left = strike

    def feed(self, records: list[bytes]) -> None:
        for record in records:
            self._server.write(record)
        self.tls.feed(self._outgoing.read())

    def _interrupted(self, function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            result = function(*arguments)
            self._strike()
            return result

        return call

    def _strike(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise Interruption


RECORDS = [b"a" * 10, b"bb", b"c" * 16384, b"dd"]


def test_decryption_that_is_interrupted_anywhere_loses_nothing(ca: Authority) -> None:
    interrupted = 0
    for strike in itertools.count(1):
        decryption = Decryption(ca, strike)
        decryption.feed(RECORDS)
        try:
            decryption.tls.decrypt_at_once(decryption.pieces)
        except Interruption:
            interrupted += 1
            decryption.tls.decrypt_at_once(decryption.pieces)
        else:
            break
        assert b"".join(decryption.pieces) == b"".join(RECORDS)
    assert interrupted >= 4 * len(RECORDS)


def test_decryption_that_is_interrupted_twice_loses_nothing(ca: Authority) -> None:
    for first, second in itertools.product(range(1, 12), range(1, 8)):
        decryption = Decryption(ca, first)
        decryption.feed(RECORDS)
        for strike in (second, 0):
            with contextlib.suppress(Interruption):
                decryption.tls.decrypt_at_once(decryption.pieces)
            decryption.strike(strike)
        decryption.tls.decrypt_at_once(decryption.pieces)
        assert b"".join(decryption.pieces) == b"".join(RECORDS), (first, second)


def test_a_fault_in_tls_comes_after_the_data_before_it(ca: Authority) -> None:
    decryption = Decryption(ca, 0)
    decryption.feed([b"good"])
    decryption.tls.feed(b"\x17\x03\x03\x00\x20" + bytes(32))
    decryption.tls.decrypt_at_once(decryption.pieces)
    assert decryption.pieces == [b"good"]
    for decrypt in (lambda: decryption.tls.decrypt_at_once(decryption.pieces), decryption.tls.decrypt):
        with pytest.raises(ssl.SSLError):
            decrypt()


def test_a_record_of_one_byte_that_may_be_lost_is_not_lost_in_silence(ca: Authority) -> None:
    decryption = Decryption(ca, 2)  # after _pending(), when the byte has been read
    decryption.feed([b"a", b"bb"])
    with pytest.raises(Interruption):
        decryption.tls.decrypt_at_once(decryption.pieces)
    assert decryption.pieces == []
    with pytest.raises(ssl.SSLError, match="interrupted"):
        decryption.tls.decrypt_at_once(decryption.pieces)
    with pytest.raises(ssl.SSLError, match="interrupted"):
        decryption.tls.decrypt()
